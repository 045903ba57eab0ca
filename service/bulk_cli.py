"""`python -m service export recommendations` and `python -m service load histories`: work on all users at once."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from index.command_line.border import FAILED, NOT_ALLOWED, say
from modeling.artifact.targets import TargetError, check_file, check_target
from service.settings import Settings, SettingsError, load_settings

if TYPE_CHECKING:
    from service.bulk.export import ExportOptions
    from service.bulk.histories import Histories

IN_MEMORY = "sqlite:///:memory:"

exports = typer.Typer(no_args_is_help=True, help="Write what the service would answer, for all users.")
loads = typer.Typer(no_args_is_help=True, help="Fill the store of the service.")
Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]
Unit = Annotated[
    str, typer.Option(help="Unit of numeric timestamps: s, ms, us, ns, or auto, which tells by their size.")
]
UNITS = ("auto", "s", "ms", "us", "ns")


def register(app: typer.Typer) -> None:
    """Add both groups to an app."""
    app.add_typer(exports, name="export")
    app.add_typer(loads, name="load")


@exports.callback()
def _exports() -> None:
    """Write what the service would answer, for all users."""


@loads.callback()
def _loads() -> None:
    """Fill the store of the service."""


@exports.command()
def recommendations(
    artifact: Annotated[Path, typer.Argument(help="Dense artifact folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the parquet files; an export that was begun there goes on.")],
    data: Annotated[Path | None, typer.Option(help="Data set folder whose users are answered.")] = None,
    store: Annotated[
        str | None, typer.Option(help="Store whose users are answered: sqlite:///PATH or redis://….")
    ] = None,
    k: Annotated[int, typer.Option(min=1, max=1000, help="Items for each user.")] = 10,
    keep_seen: Annotated[bool, typer.Option("--keep-seen", help="Also recommend items of the history.")] = False,
    wanted: Annotated[
        str | None, typer.Option("--filter", help="Only items that pass this filter, JSON as in `POST /recommend`.")
    ] = None,
    part_users: Annotated[int, typer.Option(min=1, max=1_000_000, help="Users of one file.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Write the recommendations for all users of a data set or a store; killed, it goes on where it was."""
    if (data is None) == (store is None):
        _stop("name whose users are answered: either --data FOLDER or --store URL", NOT_ALLOWED)
    try:
        check_target(out, kind="recommendations", reads=[artifact, data])
        settings = load_settings(artifacts=(artifact,), store=store or IN_MEMORY)
    except (TargetError, SettingsError) as error:
        _stop(str(error), NOT_ALLOWED)
    if not artifact.is_dir():
        _stop(f"artifact folder {artifact} does not exist", NOT_ALLOWED)
    _prepare(settings)
    from index.filters.body import read_filter
    from service.bulk.export import ExportOptions

    try:
        passing = None if wanted is None else read_filter(wanted)
    except ValueError as error:
        _stop(str(error), NOT_ALLOWED)
    users = _ended(_export(settings, data, out, ExportOptions(k, not keep_seen, part_users, passing)))
    print(json.dumps({"out": str(out), "users": users}) if as_json else f"[export] {out} holds {users:,} users")


@loads.command()
def histories(
    data: Annotated[Path, typer.Argument(help="Data set folder; its interactions file is read.")],
    store: Annotated[
        str | None, typer.Option(help="Store to fill; left out: ANYO_STORE, as the service has it.")
    ] = None,
    unit: Unit = "auto",
    once: Annotated[
        Path | None,
        typer.Option(help="File that notes what was loaded, written at the end; what it notes already is not loaded."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Load a data set's histories into the store, so that `user_id` is known from the first day; loaded again, nothing
    is stored twice."""
    if unit not in UNITS:
        _stop(f"--unit {unit!r} is not allowed; allowed are {', '.join(UNITS)}", NOT_ALLOWED)
    try:
        settings = load_settings(store=store)
    except SettingsError as error:
        _stop(str(error), NOT_ALLOWED)
    if once is not None and _said(once) == (same := _same(data, settings)):
        print(json.dumps({"loaded": False}) if as_json else f"[load] {data} was loaded before: {once} says so")
        return
    _prepare(settings)
    loaded = _ended(_load(settings, data, unit))
    if once is not None:
        once.parent.mkdir(parents=True, exist_ok=True)
        once.write_text(json.dumps(same) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(loaded))
    else:
        print(
            f"[load] {loaded['users']:,} users: {loaded['stored']:,} events stored, {loaded['duplicates']:,} were "
            f"there before, {loaded['too_old']:,} older than all that is kept"
        )


def _same(data: Path, settings: Settings) -> dict[str, Any]:
    """The record that `--once` compares: name, size and time of the data files, and the store without its password."""
    from service.settings.store_kinds import shown

    files = sorted(data.glob("interactions.*"))
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return {"histories_of": str(data.absolute()), "files": stats, "store": shown(settings.store)}


def _said(once: Path) -> dict[str, Any] | None:
    """The record in the file of `--once`; None if there is no file. Ends the program if it is another kind of file."""
    if not once.exists():
        return None
    try:
        check_file(once, fields=("histories_of",))
    except TargetError as error:
        _stop(str(error), NOT_ALLOWED)
    found: dict[str, Any] = json.loads(once.read_text(encoding="utf-8"))
    return found


async def _export(settings: Settings, data: Path | None, out: Path, options: ExportOptions) -> int:
    from service.bulk.export import export
    from service.service import Service

    found = None if data is None else _read(data, "auto")
    service = Service(settings)
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        return await export(service, found, out, options, lambda line: say(f"[export] {line}"))
    finally:
        await service.close()


async def _load(settings: Settings, data: Path, unit: str) -> dict[str, Any]:
    from dataclasses import asdict

    from service.bulk.load import load
    from service.observability.metrics import Metrics
    from service.stores import open_store

    found = _read(data, unit)
    store = open_store(settings.store, settings, Metrics())
    await store.open()
    try:
        done = await load(store, found, settings.store_history, lambda line: say(f"[load] {line}"))
        return asdict(done)
    finally:
        await store.close()


def _read(data: Path, unit: str) -> Histories:
    from service.bulk.histories import read_histories

    return read_histories(data, unit)


def _prepare(settings: Settings) -> None:
    """Set what libraries read when they are loaded, as the service does."""
    from service.engine.cpu import few_heaps, set_library_defaults, set_model_threads, shares

    set_library_defaults()
    few_heaps()
    set_model_threads(shares(settings.lanes, settings.threads, settings.device).threads)
    from service.observability.logs import configure_logging

    configure_logging("error", settings.log_format)


def _ended(work: Any) -> Any:
    """Return what the work gives; end the program with one sentence where it fails."""
    from service.errors import AnyoError, StartError
    from service.stores.base import EventConflict, StoreDown

    try:
        return asyncio.run(work)
    except (AnyoError, StartError, EventConflict, StoreDown) as error:
        _stop(str(error), FAILED)


def _stop(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)
