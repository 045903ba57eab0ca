"""`python -m service pull`, `key`, `export` and `load`: what operators need beside the server itself."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from index.command_line.border import BorderedGroup
from service import bulk_cli

app = typer.Typer(
    cls=BorderedGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="What operators need beside the server: artifacts, keys, work on all users.",
)
bulk_cli.register(app)


@app.command()
def pull(
    source: Annotated[
        str, typer.Argument(help="A folder, http(s)://…, s3://BUCKET/PREFIX or hf://OWNER/NAME[@REVISION].")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to put it in; an artifact that is there is replaced at once.")],
    sha256: Annotated[
        str | None, typer.Option(help="Expected sha256 of manifest.json, which pins every file; refused otherwise.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, max=1 << 50, help="Largest artifact, all its files together.")] = 64
    << 30,
    seconds: Annotated[
        float, typer.Option(min=1, max=366 * 86_400, help="Longest time that fetching may take.")
    ] = 3600,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Fetch an artifact by checksum; a service that has the folder in its root can then load it while it runs."""
    from service.artifacts.pull import PullError
    from service.artifacts.pull import pull as fetch

    try:
        version = fetch(
            source, target, sha256=sha256, note=_quiet if json_output else _say, most_bytes=max_bytes, seconds=seconds
        )
    except PullError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    if json_output:
        print(json.dumps({"target": str(target), "version": version}))
    else:
        print(f"[pull] {target} holds version {version}")


@app.command()
def key(
    name: Annotated[str, typer.Option(help="Name of the key in logs, before its hash in the setting.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a key for the API or for administration, and the hash that goes into the settings."""
    from service.keys import new_key

    if name and not re.fullmatch("[A-Za-z0-9._-]{1,64}", name):
        raise typer.BadParameter("a name has letters, digits, '.', '_' and '-', at most 64", param_hint="--name")
    secret, digest = new_key()
    entry = f"{name}:{digest}" if name else digest
    if json_output:
        print(json.dumps({"key": secret, "setting": entry}))
        return
    print(f"key (give it to the client; it is shown only now):   {secret}")
    print(f"hash (for ANYO_API_KEYS or ANYO_ADMIN_KEYS):         {entry}")


def _say(line: str) -> None:
    print(f"[pull] {line}", flush=True)


def _quiet(line: str) -> None:
    pass
