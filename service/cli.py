"""`python -m service ARTIFACT…`: checks the settings, loads, serves, and says how to ask."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from index.command_line.border import BorderedCommand

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

EXAMPLE_ITEMS = 3
USAGE_ERROR, FAILED = 2, 1


@app.command(cls=BorderedCommand)
def serve(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Artifact folders, or NAME=FOLDER; the first answers requests that name none."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Where users' histories live: sqlite:///PATH, sqlite:///:memory: or redis://….")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print a JSON message when ready.")] = False,
) -> None:
    """Serve POST /recommend from artifacts. docs/reference/settings.md lists the variables ANYO_…."""
    from service.settings import SettingsError, load_settings, named_folder

    try:
        settings = load_settings(artifacts=tuple(artifacts) if artifacts else None, host=host, port=port, store=store)
    except SettingsError as error:
        _stop(str(error), USAGE_ERROR)
    if not settings.artifacts:
        _stop(
            "name at least one artifact folder, e.g. python -m service artifacts/NAME (or set ANYO_ARTIFACTS)",
            USAGE_ERROR,
        )
    for _, folder in map(named_folder, settings.artifacts):
        if not folder.is_dir():
            _stop(f"artifact folder {folder} does not exist; `python -m training train` makes one", USAGE_ERROR)
    _run(settings, json_output)


def _run(settings: Settings, json_output: bool) -> None:
    from service.engine.cpu import few_heaps, set_library_defaults, set_model_threads, shares

    # Before anything imports numpy, faiss or torch: they read it once, when they are loaded.
    set_library_defaults()
    few_heaps()
    cores = shares(settings.lanes, settings.threads, settings.device)
    if not json_output:
        from service.settings import named_folder

        names = ", ".join(name or folder.name for name, folder in map(named_folder, settings.artifacts))
        print(f"[serve] loading {names} (forward passes at once: {cores.lanes}, threads of each: {cores.threads}, "
              f"of one alone: {cores.alone})", flush=True)  # fmt: skip
    from service.errors import StartError
    from service.http.server import serve as run_server
    from service.observability.logs import configure_logging
    from service.service import Service

    configure_logging(settings.log_level, settings.log_format)
    set_model_threads(cores.threads)
    try:
        service = Service(settings)
        run_server(service, lambda url: _announce(service, url, json_output))
    except StartError as error:
        _stop(str(error), FAILED)


def _announce(service: object, url: str, json_output: bool) -> None:
    from service.service import Service

    assert isinstance(service, Service)
    recommender = service.loaded()
    parts = recommender.parts
    history = parts.golden[0].ids[-EXAMPLE_ITEMS:]
    body = json.dumps({"history": list(history), "k": 5}, ensure_ascii=False)
    path = "/recommend" if recommender.kind == "dense" else "/recommend/generative"
    curl = f"curl -s {url}{path} -H 'content-type: application/json' -d {shlex.quote(body)}"
    if json_output:
        ready = {"ready": True, "url": url, "artifacts": list(service.recommenders), "curl": curl}
        print(json.dumps({**ready, "admin_key": service.start_key}), flush=True)
        return
    if service.start_key is not None:
        print(f"[serve] to load, unload or activate artifacts or to split the traffic, send X-API-Key: "
              f"{service.start_key}\n[serve] (an admin key for this start; ANYO_ADMIN_KEYS sets one that lasts)",
              flush=True)  # fmt: skip
    print(
        f"[serve] ready: {parts.name} ({parts.recipe}, {len(parts.catalog)} items) on {url}\n"
        f"[serve] the page for people is {url}/   Ctrl-C ends it\n"
        f"[serve] try:\n\n{curl}\n",
        flush=True,
    )


def _stop(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)
