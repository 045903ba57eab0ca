"""The commands `card` and `push`: what goes out with an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from training.cli_common import Json, errors_as_one_line

console = Console(stderr=True)

Report = Annotated[Path | None, typer.Option(help="report.json of `compare --out`, for test figures with intervals.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(card)
    app.command()(push)


def card(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    report: Report = None,
) -> None:
    """Print the artifact's model card: Markdown with front matter, from its manifest."""
    with errors_as_one_line(console):
        text = _card(artifact, report)
    print(text, end="")


def push(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder.")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME of a model repository; made if it is not there.")],
    report: Report = None,
    private: Annotated[bool, typer.Option(help="Who may see a repository that is made.")] = True,
    revision: Annotated[str, typer.Option(help="Branch to commit to.")] = "main",
    as_json: Json = False,
) -> None:
    """Push an artifact and its card to the Hugging Face Hub (HF_TOKEN, HF_ENDPOINT); `service pull hf://` fetches."""
    with errors_as_one_line(console):
        from training.publishing.hub import push as upload

        address = upload(artifact, repository, _card(artifact, report), private=private, revision=revision)
    print(json.dumps({"repository": repository, "commit": address}) if as_json else address)


def _card(artifact: Path, report: Path | None) -> str:
    from modeling.artifact.manifest import ArtifactError, one_line, read_manifest
    from training.publishing.card import card as written

    manifest = read_manifest(artifact)
    try:
        found = None if report is None else json.loads(report.read_text(encoding="utf-8"))
        return written(manifest, found)
    except (ValueError, KeyError, AttributeError) as error:
        where = f"artifact {artifact.name}" if report is None else f"--report {report}"
        raise ArtifactError(f"{where}: {one_line(error)}") from error
