"""Loads that go wrong: they end in one sentence, in time or when told to, and what serves goes on meanwhile."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from index import Catalog
from modeling.artifact.manifest import MANIFEST, hash_files, read_manifest, sealed
from service.artifacts.trial import Limits, try_out
from service.errors import StartError
from service.service import Service
from service.settings import SettingsError, load_settings, named_folder
from testing.artifacts import write_id_artifact
from testing.fake_parts import item_id, make_parts
from testing.running import Running, running

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "manifest.json").write_text("{}")
    return tmp_path


def seal(folder: Path, **changes: Any) -> Path:
    manifest = read_manifest(folder)
    index = folder / "index"
    entry = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(entry, indent=2, sort_keys=True) + "\n")
    text = sealed(manifest.model_copy(update={"files": hash_files(folder), **changes}))
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
    return folder


class Panic(BaseException):
    """As pyo3 raises it for a panic in Rust: no Exception."""


RAISED = [
    ValueError("odd"), KeyError("odd"), TypeError("odd"), RuntimeError("odd"), AssertionError("odd"),
    OverflowError("odd"), RecursionError("odd"), UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"), MemoryError(),
    OSError("odd\nnews"), Panic("odd"), pl.exceptions.ComputeError("odd"), ZeroDivisionError(),
]  # fmt: skip


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
async def test_whatever_a_load_raises_is_one_sentence(error: BaseException, root: Path) -> None:
    def opens(folder: Path, device: str) -> Any:
        raise error

    async with running(opens=opens, artifacts_root=root) as anyo:
        answer = await anyo.client.post("/artifacts/second/load")
        refused = answer.json()["error"]
        assert (answer.status_code, refused["code"]) == (409, "artifact_refused")
        assert refused["message"].endswith("nothing was changed") and "\n" not in refused["message"]
        assert (await anyo.recommend(history=[item_id(1)])).status_code == 200
        assert anyo.service.registry.operation is None
    service = Service(load_settings(artifacts=(root / "second",), store="sqlite:///:memory:"), open_artifact=opens)
    await service.start()
    assert service.loading is not None
    with pytest.raises(StartError) as stopped:
        await service.loading
    assert "\n" not in str(stopped.value)
    await service.close()


class Stuck:
    """Opens nothing until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def __call__(self, folder: Path, device: str) -> Any:
        self.gate.wait(60)
        return make_parts()


async def _at_work(anyo: Running) -> None:
    while anyo.service.registry.operation is None:
        await asyncio.sleep(0.005)


async def test_a_load_that_never_ends_is_ended_by_its_limit(root: Path) -> None:
    stuck = Stuck()
    async with running(opens=stuck, artifacts_root=root, load_seconds=1) as anyo:
        answer = await anyo.client.post("/artifacts/second/load")
        assert answer.status_code == 409 and "ANYO_LOAD_SECONDS" in answer.json()["error"]["message"]
        assert anyo.service.registry.operation is None
        assert (await anyo.client.post("/artifacts/none/unload")).status_code == 404, "the next operation has its turn"
        stuck.gate.set()


async def test_a_load_is_cancelled_by_an_unload(root: Path) -> None:
    stuck = Stuck()
    async with running(opens=stuck, artifacts_root=root) as anyo:
        loading = asyncio.create_task(anyo.client.post("/artifacts/second/load"))
        await _at_work(anyo)
        assert (await anyo.client.post("/artifacts/third/unload")).status_code == 409, "another one is busy"
        cancelled = await anyo.client.post("/artifacts/second/unload")
        assert (cancelled.status_code, cancelled.json()["freed_bytes"]) == (200, 0)
        refused = await loading
        assert refused.status_code == 409 and "cancelled" in refused.json()["error"]["message"]
        stuck.gate.set()
        await asyncio.sleep(0.05)
        assert list(anyo.service.recommenders) == ["fake"], "what comes of it later is left alone"


def test_names_are_given_before_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    assert named_folder(Path("new=x/y=z")) == ("new", Path("x/y=z"))
    assert named_folder(Path("x/y")) == (None, Path("x/y"))
    assert named_folder(tmp_path / "a=b") == (None, tmp_path / "a=b")
    assert named_folder(Path("no name=x")) == (None, Path("no name=x"))
    with pytest.raises(SettingsError):
        load_settings(load_trial="sometimes")


async def test_artifacts_of_one_name_are_served_under_two(tmp_path: Path) -> None:
    def settings(*given: str) -> Any:
        return load_settings(artifacts=tuple(map(Path, given)), store="sqlite:///:memory:", warmup_requests=0)

    def opens(folder: Path, device: str) -> Any:
        return dataclasses.replace(make_parts(), name="demo")

    clash = Service(settings("v1", "v2"), open_artifact=opens)
    await clash.start()
    assert clash.loading is not None
    with pytest.raises(StartError, match=r"demo-2=v2"):
        await clash.loading
    await clash.close()
    both = Service(settings("v1", "newer=v2"), open_artifact=opens)
    await both.start()
    assert both.loading is not None
    await both.loading
    assert list(both.recommenders) == ["demo", "newer"]
    assert both.recommenders["newer"].parts.name == "newer"
    await both.close()


@pytest.mark.parametrize("field", ["name", "recipe", "version", "data"])
@pytest.mark.parametrize("text", ["\x1b[31mred", 'x"} 1\nfake{a="', "a\u202eb", "x" * 300])
def test_a_manifest_whose_names_steer_a_terminal_is_refused(field: str, text: str, tmp_path: Path) -> None:
    folder = write_id_artifact(tmp_path, "small")
    manifest = read_manifest(folder).model_copy(update={field: text})
    (folder / MANIFEST).write_text(sealed(manifest), encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=field) as refused:
        read_manifest(folder)
    assert str(refused.value).isprintable()


# -- the trial, in a real process ---------------------------------------------------------------------------------


async def test_a_trial_accepts_what_is_whole_and_says_why_it_refuses(tmp_path: Path) -> None:
    folder = write_id_artifact(tmp_path, "small")
    limits = Limits(memory=2048 * MIB, seconds=120)
    assert await try_out(folder, limits) == read_manifest(folder).version
    (folder / "catalog.parquet").write_bytes(b"no table")
    seal(folder)
    with pytest.raises(StartError, match="cannot be read as parquet"):
        await try_out(folder, limits)


async def test_a_trial_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    folder = write_id_artifact(tmp_path, "bomb")
    rows, title = len(Catalog.read(folder / "catalog.parquet")), "a" * 60_000
    frame = pl.read_parquet((folder / "catalog.parquet").read_bytes())
    pl_titles = pl.Series([f"{row} {title * 16}" for row in range(rows)])
    frame.with_columns(title=pl_titles).write_parquet(folder / "catalog.parquet", compression="zstd")
    assert (folder / "catalog.parquet").stat().st_size < 4 * MIB
    with pytest.raises(StartError) as refused:
        await try_out(seal(folder), Limits(memory=192 * MIB, seconds=120))
    assert "\n" not in str(refused.value)


@pytest.mark.linux
async def test_the_memory_of_a_trial_is_what_the_artifact_takes(tmp_path: Path) -> None:
    """Addresses that libraries reserve and never write to do not count: a small artifact needs little."""
    folder = write_id_artifact(tmp_path, "small")
    assert await try_out(folder, Limits(memory=192 * MIB, seconds=120)) == read_manifest(folder).version


async def test_a_trial_ends_with_its_time_or_with_whoever_asked(tmp_path: Path) -> None:
    folder = write_id_artifact(tmp_path, "slow")
    with pytest.raises(StartError, match=r"longer than 0\.05 s"):
        await try_out(folder, Limits(memory=2048 * MIB, seconds=0.05))
    asked = asyncio.create_task(try_out(folder, Limits(memory=2048 * MIB, seconds=120)))
    await asyncio.sleep(0.2)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


# -- a large catalog ------------------------------------------------------------------------------------------------


async def test_reading_a_million_items_lets_the_event_loop_run(tmp_path: Path) -> None:
    rows = 1_000_000
    pl.DataFrame({
        "row": np.arange(rows),
        "item_id": [f"i{row}" for row in range(rows)],
        "title": [f"Title {row}" for row in range(rows)],
        "categories": [["a", "b"] if row % 2 else ["c"] for row in range(rows)],
        "popularity": np.arange(rows),
        "popularity_counted_on": ["train"] * rows,
    }).write_parquet(tmp_path / "catalog.parquet")  # fmt: skip
    content = (tmp_path / "catalog.parquet").read_bytes()
    reading = asyncio.create_task(asyncio.to_thread(Catalog.parse, content, "catalog.parquet", rows))
    ticks = 0
    started = time.monotonic()
    while not reading.done():
        await asyncio.sleep(0.005)
        ticks += 1
    catalog: Catalog = await reading
    assert len(catalog) == rows and catalog.row("i999999") == 999_999
    assert catalog.categories[3] is catalog.categories[5], "equal ones are one object"
    assert ticks > 20 * min(1.0, time.monotonic() - started)


def _changed(change: Callable[[pl.DataFrame], pl.DataFrame], tmp_path: Path) -> Path:
    folder = write_id_artifact(tmp_path, "small")
    frame = change(pl.read_parquet((folder / "catalog.parquet").read_bytes()))
    frame.write_parquet(folder / "catalog.parquet")
    return folder / "catalog.parquet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.with_columns(title=pl.lit("a" * 70_000)), "at most 65536"),
        (lambda frame: frame.with_columns(categories=pl.Series([["x"] * 100] * len(frame))), "at most 64 an item"),
        (lambda frame: frame.with_columns(categories=pl.Series([[None, "x"]] * len(frame))), "needs a name"),
        (lambda frame: frame.with_columns(item_id=pl.lit("same")), "stands twice"),
        (lambda frame: frame.head(3), "holds 3 items, and 500 are expected"),
    ],
)
def test_a_catalog_beyond_what_is_read_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    from index import CatalogError

    path = _changed(change, tmp_path)
    with pytest.raises(CatalogError, match=message):
        Catalog.parse(path.read_bytes(), path, 500)
