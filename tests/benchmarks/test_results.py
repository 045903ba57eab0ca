"""benchmarks/lib/results.py: a run writes a file of results that the pages accept."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.engine import filtered_search
from benchmarks.lib import results
from benchmarks.lib.results import ResultFile, result_name, rows_of
from scripts.pages.results import LEDGER, load_results
from scripts.pages.tables import whole

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--sizes", "300", "--queries", "1", "--dim", "8", "--repeats", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of results, with the groups of the real one."""
    for group in ("serving", "service-parts"):
        (tmp_path / group).mkdir()
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["filtered_search.py", *SMALL, *words])
    filtered_search.main()


def test_a_run_writes_a_file_that_the_pages_accept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--result", "service-parts/filters")
    figures = json.loads(capsys.readouterr().out)
    written = load_results(folder, LEDGER)["filters"]
    assert written["rows"] == rows_of(figures["rows"])
    assert written["command"] == "python -m benchmarks.engine.filtered_search " + " ".join(SMALL)
    assert written["machine"]["cores"] >= 1 and "GiB" in written["machine"]["processor"]
    assert "faiss" in written["versions"] and written["versions"].startswith("Python 3.")
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert (written["commit"] or "").startswith(head.stdout.strip())
    assert f"Command: `{written['command']}`." in whole(written)


def test_without_the_option_nothing_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch)
    assert list(folder.rglob("*.json")) == []


def test_a_second_run_keeps_words_and_replaces_figures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--result=service-parts/filters")
    path = folder / "service-parts" / "filters.json"
    first = json.loads(path.read_text())
    column = {"key": first["columns"][1]["key"], "title": "As edited", "digits": 2}
    words = {"title": "Edited", "question": "How long?", "notes": ["The first is fast."], "status": "superseded"}
    path.write_text(json.dumps({**first, **words, "columns": [column], "rows": []}))
    run(monkeypatch, "--result=service-parts/filters")
    second = load_results(folder, LEDGER)["filters"]
    assert (second["title"], second["question"], second["status"]) == ("Edited", "How long?", "current")
    assert second["columns"][0] == column and len(second["columns"]) == len(first["columns"])
    assert second["notes"] == [] and "The first is fast." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nowhere/one", "serving", "serving/One", "serving/../one", "/serving/one"])
def test_a_name_that_is_no_place_is_refused_before_the_run(folder: Path, name: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="service-parts, serving"):
        result_name(name)


def test_an_id_of_another_folder_is_refused(folder: Path) -> None:
    (folder / "serving" / "one.json").write_text("{}")
    assert result_name("serving/one") == "serving/one"
    with pytest.raises(argparse.ArgumentTypeError, match="used in serving"):
        result_name("service-parts/one")


@pytest.mark.parametrize(
    ("figures", "rows"),
    [
        ([{"a": 1}, {"a": {"b": 2.12345678}}], [{"a": 1}, {"a b": 2.12346}]),
        ({"x": {"a": 1}, "y": {"a": 2}}, [{"name": "x", "a": 1}, {"name": "y", "a": 2}]),
        (
            {"a": 1, "b": {"c": [{"d": 2}], "e": [3, 4]}, "f": {"value": 5, "low": 4, "high": 6}},
            [
                {"figure": "a", "value": 1},
                {"figure": "b c 0 d", "value": 2},
                {"figure": "b e", "value": [3, 4]},
                {"figure": "f", "value": {"value": 5, "low": 4, "high": 6}},
            ],
        ),
    ],
    ids=["list", "named", "figures"],
)
def test_rows_of_figures(figures: Any, rows: list[dict[str, Any]]) -> None:
    assert rows_of(figures) == rows


def test_paths_of_this_machine_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "/home/me/artifacts/shop", "--result", "serving/one", "--rounds", "3"])
    command = ResultFile(filtered_search.__file__, None).command()
    assert command == "python -m benchmarks.engine.filtered_search shop --rounds 3"


def test_the_load_is_what_others_use(monkeypatch: pytest.MonkeyPatch) -> None:
    spent, now = iter([0.0, 0.5, 50.0]), iter([0.0, 100.0, 200.0])
    monkeypatch.setattr(results, "others_cpu_s", lambda: next(spent))
    monkeypatch.setattr(results.time, "monotonic", lambda: next(now))
    file = ResultFile(filtered_search.__file__, None)
    assert [file.load(), file.load()] == ["idle", "other work on the machine"]


def test_every_program_with_a_table_takes_the_option() -> None:
    """The commands of tables that programs of `benchmarks` made."""
    named = {
        word
        for each in load_results().values()
        for word in (each["command"] or "").split()
        if word.startswith("benchmarks.") and not word.startswith("benchmarks.lib.")
    }
    sources = {word: ROOT / (word.rstrip(";)").replace(".", "/") + ".py") for word in named}
    assert len(named) > 15
    assert [word for word, path in sources.items() if path.exists() and "RESULT.publish(" not in path.read_text()] == []
