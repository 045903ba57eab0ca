"""Exports answer as requests do and go on after a kill; loaded histories are those of the file, once."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from index.filters.body import read_filter
from service.admin_cli import app
from service.bulk import export as exporting
from service.bulk.export import ExportOptions, export
from service.bulk.histories import Histories, read_histories
from service.bulk.load import load
from service.errors import StartError
from service.settings import load_settings
from service.stores.sqlite import SqliteStore
from testing.artifacts import write_id_artifact
from testing.fake_parts import CATEGORIES, item_id
from testing.running import ROOT, Running, running

USERS = 37


def write_interactions(path: Path) -> Path:
    """Rows of 37 users in the order of time; one of them took nothing that is in the catalog."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", item_id(int(row))) for user in range(USERS - 1) for row in rng.permutation(200)[: 3 + user % 9]
    ]
    rows += [("stranger", "not-there")]
    order = rng.permutation(len(rows))
    table = pl.DataFrame([(*rows[row], 1000 + place) for place, row in enumerate(order)], orient="row",
                         schema=["user_id", "item_id", "timestamp"])  # fmt: skip
    path.mkdir()
    table.write_csv(path / "interactions.csv")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_interactions(tmp_path_factory.mktemp("data") / "shop")


def written(out: Path) -> dict[str, list[tuple[str, float]]]:
    parts = sorted(out.glob("part-*.parquet"))
    table = pl.concat([pl.read_parquet(part) for part in parts]).sort("user_id", "rank", maintain_order=True)
    found: dict[str, list[tuple[str, float]]] = {}
    for user, rank, item, score, _ in table.iter_rows():
        found.setdefault(user, []).append((item, score))
        assert rank == len(found[user]), "no gap, no repeat"
    return found


async def by_requests(anyo: Running, histories: Histories, k: int) -> dict[str, list[tuple[str, float]]]:
    found = {}
    for user, items, _ in histories.part(0, USERS):
        answer = await anyo.recommend(history=items, user_id=user, k=k)
        found[user] = [(item["item_id"], pytest.approx(item["score"])) for item in answer.json()["items"]]
    return found


async def test_an_export_answers_as_requests_do(data: Path, tmp_path: Path) -> None:
    async with running() as anyo:
        histories = read_histories(data)
        count = await export(anyo.service, histories, tmp_path / "out", ExportOptions(5, part_users=10), print)
        assert count == USERS and len(list((tmp_path / "out").glob("part-*"))) == 4
        assert written(tmp_path / "out") == await by_requests(anyo, histories, 5)
        popular = pl.read_parquet(tmp_path / "out" / "part-00000.parquet").filter(pl.col("source") == "popular")
        assert popular["user_id"].unique().to_list() == ["stranger"]


async def test_an_export_with_a_filter_answers_as_requests_with_it(data: Path, tmp_path: Path) -> None:
    wanted = {"attribute": "categories", "any_of": [CATEGORIES[0]]}
    async with running() as anyo:
        histories, options = read_histories(data), ExportOptions(5, filter=read_filter(wanted))
        await export(anyo.service, histories, tmp_path / "out", options, print)
        found = written(tmp_path / "out")
        for user, items, _ in histories.part(0, 5):
            answer = await anyo.recommend(history=items, user_id=user, k=5, filter=wanted)
            assert [item for item, _ in found[user]] == [item["item_id"] for item in answer.json()["items"]]
        with pytest.raises(StartError, match="another filter"):
            await export(anyo.service, histories, tmp_path / "out", ExportOptions(5), print)
        odd = ExportOptions(5, filter=read_filter({"attribute": "colour", "any_of": ["red"]}))
        with pytest.raises(StartError, match="attribute 'colour' is not in the catalog"):
            await export(anyo.service, histories, tmp_path / "odd", odd, print)


async def test_a_killed_export_goes_on_without_a_gap_or_a_repeat(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", ExportOptions(5, part_users=10)
    async with running() as anyo:
        histories, replace = read_histories(data), exporting._replace

        def killed(path: Path, write: Any) -> None:
            if path.name == "part-00002.parquet":
                path.with_name(path.name + ".part").write_bytes(b"half a file")
                raise KeyboardInterrupt
            replace(path, write)

        monkeypatch.setattr(exporting, "_replace", killed)
        with pytest.raises(KeyboardInterrupt):
            await export(anyo.service, histories, out, options, print)
        monkeypatch.setattr(exporting, "_replace", replace)
        kept = (out / "part-00000.parquet").stat().st_mtime_ns
        await export(anyo.service, histories, out, options, print)
        assert (out / "part-00000.parquet").stat().st_mtime_ns == kept, "finished parts stay"
        assert written(out) == await by_requests(anyo, histories, 5)
        with pytest.raises(StartError, match=r"another k \(5, now 6\)"):
            await export(anyo.service, histories, out, ExportOptions(6, part_users=10), print)


async def test_several_exports_of_one_folder_divide_its_parts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options, made, part = tmp_path / "out", ExportOptions(5, part_users=5), list[int](), exporting._part

    async def counted(*arguments: Any) -> pl.DataFrame:
        made.append(arguments[4])
        return await part(*arguments)

    monkeypatch.setattr(exporting, "_part", counted)
    async with running() as anyo:
        histories = read_histories(data)
        both = [export(anyo.service, histories, out, options, print) for _ in range(2)]
        assert await asyncio.gather(*both) == [USERS, USERS], "each ends when all parts are there"
        assert sorted(made) == list(range(0, USERS, 5)), "each part is computed once"
        assert written(out) == await by_requests(anyo, histories, 5)
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


async def test_the_users_of_a_store_are_exported(data: Path, tmp_path: Path) -> None:
    async with running(deadline_ms=60_000) as anyo:
        histories = read_histories(data)
        await load(anyo.service._inner_store, histories, 500, print)
        count = await export(anyo.service, None, tmp_path / "out", ExportOptions(4, part_users=10), print)
        assert count == USERS and written(tmp_path / "out") == await by_requests_of_users(anyo, histories, 4)


async def by_requests_of_users(anyo: Running, histories: Histories, k: int) -> dict[str, list[tuple[str, float]]]:
    found = {}
    for user in histories.users["user_id"]:
        answer = await anyo.recommend(user_id=user, k=k)
        found[user] = [(item["item_id"], pytest.approx(item["score"])) for item in answer.json()["items"]]
    return found


async def test_histories_are_loaded_once_and_cut_to_what_is_kept(data: Path, tmp_path: Path) -> None:
    histories, store = read_histories(data), SqliteStore(str(tmp_path / "store.db"), 6)
    await store.open()
    events = sum(min(6, len(items)) for _, items, _ in histories.part(0, USERS))
    first = await load(store, histories, 6, print)
    assert (first.users, first.stored, first.duplicates) == (USERS, events, 0)
    again = await load(store, histories, 6, print)
    assert (again.stored, again.duplicates) == (0, events)
    for user, items, times in histories.part(0, USERS):
        kept = await store.history(user)
        assert [event.item_id for event in kept] == items[-6:] and [event.timestamp for event in kept] == times[-6:]
    await store.close()


@pytest.mark.parametrize(
    ("times", "unit", "seconds"),
    [
        ([1_700_000_000, 1_700_000_001], "auto", 1_700_000_000),
        ([1_700_000_000_000, 1_700_000_001_000], "auto", 1_700_000_000),
        (["2023-11-14T22:13:20Z", "2023-11-14T22:13:21Z"], "auto", 1_700_000_000),
        ([1, 2], "ms", 0.001),
    ],
    ids=["seconds", "milliseconds", "iso", "given"],
)
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_times_are_unix_seconds_whatever_the_form(
    times: list[Any], unit: str, seconds: float, form: str, tmp_path: Path
) -> None:
    table = pl.DataFrame({"user_id": [7, 7], "item_id": ["b", "a"], "timestamp": times[::-1], "rating": [1, 2]})
    write = {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[form]
    write(tmp_path / f"interactions.{form}")
    ((user, items, found),) = read_histories(tmp_path, unit).part(0, 9)
    assert (user, items, found[0]) == ("7", ["a", "b"], seconds)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="holds none of interactions"):
        read_histories(tmp_path)
    path = tmp_path / "interactions.csv"
    path.write_text("user_id,item_id\na,b\n")
    with pytest.raises(StartError, match="has no column 'timestamp'"):
        read_histories(tmp_path)
    path.write_text("user_id,item_id,timestamp\na,b,1\na,,2\n")
    with pytest.raises(StartError, match="1 rows lack a user"):
        read_histories(tmp_path)
    path.write_text("user_id,item_id,timestamp\na,b,yesterday\n")
    with pytest.raises(StartError, match="1 rows lack a user"):
        read_histories(tmp_path)
    (tmp_path / "interactions.jsonl").write_text("")
    with pytest.raises(StartError, match="exactly one is needed"):
        read_histories(tmp_path)


def test_the_commands_fill_a_store_and_export_from_it(data: Path, tmp_path: Path) -> None:
    artifact, url = write_id_artifact(tmp_path, "small"), f"sqlite:///{tmp_path}/store.db"
    for words in (
        ("load", "histories", data, "--store", url, "--json"),
        ("export", "recommendations", artifact, "--store", url, "--out", tmp_path / "out", "--k", "3", "--json"),
    ):
        command = [sys.executable, "-m", "service", *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["users"] == USERS
    assert all(len(items) == 3 for items in written(tmp_path / "out").values())
    assert load_settings(store=url).store == url


def test_make_run_loads_the_histories_of_its_data_into_the_store_that_it_serves() -> None:
    done = subprocess.run(
        ["make", "-n", "run", "DATA=shops/corner", "ARTIFACT=artifacts/corner"],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={name: value for name, value in os.environ.items() if name != "ANYO_STORE"},
    )  # fmt: skip
    loading = next(line for line in done.stdout.splitlines() if "service load histories" in line)
    serving = next(line for line in done.stdout.splitlines() if "-m service" in line and "--port" in line)
    (store,) = set(re.findall(r'--store "([^"]+)"', loading + serving))
    assert re.fullmatch(r"sqlite:///data/histories-corner-\d+\.sqlite", store)
    assert 'dir="shops/corner"' in done.stdout and "--once" in loading


async def test_histories_are_loaded_once_and_users_are_known(data: Path, tmp_path: Path) -> None:
    once, store = tmp_path / "new" / "loaded.json", f"sqlite:///{tmp_path / 'histories.sqlite'}"
    words = ["load", "histories", str(data), "--store", store, "--once", str(once), "--json"]
    first, again = [await asyncio.to_thread(CliRunner().invoke, app, words) for _ in range(2)]
    assert json.loads(first.stdout)["stored"] > 0, first.output
    assert json.loads(again.stdout) == {"loaded": False}
    async with running(store=store) as anyo:
        known = (await anyo.recommend(user_id="u3", k=5)).json()
        _, items, _ = next(user for user in read_histories(data).part(0, USERS) if user[0] == "u3")
        given = (await anyo.recommend(history=items, k=5)).json()
        assert [item["item_id"] for item in known["items"]] == [item["item_id"] for item in given["items"]]
    once.write_text("mine")
    refused = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert refused.exit_code == 2 and "was not written by this command" in refused.stderr
    assert once.read_text() == "mine"
