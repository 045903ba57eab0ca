"""The pages of the documentation hold what the results say: tables, plots, and README's figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lib.plot import Dot, bar_plot, scatter_plot
from scripts.pages import readme
from scripts.pages.__main__ import main
from scripts.pages.blocks import BLOCK, generate, pages
from scripts.pages.commands import PAGE as COMMANDS
from scripts.pages.commands import command_reference
from scripts.pages.figures import figures
from scripts.pages.recipe_pages import FOLDER as RECIPES
from scripts.pages.recipe_pages import SETTINGS, recipe_pages
from scripts.pages.results import ROOT, ResultError, load_results, numbers
from scripts.pages.tables import cell, source, table
from training.recipes import recipe_names

RESULTS = load_results()
READMES = [ROOT / "README.md", ROOT / "README.ja.md"]
DOCUMENTATION = "\n".join(page.read_text(encoding="utf-8") for page in pages())
BLOCKS = {match[2] for match in BLOCK.finditer(DOCUMENTATION)}
NUMBER = re.compile(r"(?<![\w.])[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?\.?\d+(?![\w])")

VALID: dict[str, Any] = {
    "id": "one", "title": "One", "question": "Which?", "protocol": None, "commit": None, "machine": None, "date": None,
    "command": None, "versions": None, "load": None, "status": "current", "unit": None, "higher_is_better": None,
    "columns": [{"key": "value", "title": "Value", "digits": None}], "rows": [{"value": 1}], "notes": [],
}  # fmt: skip


def written(folder: Path, **changes: Any) -> Path:
    """A folder of results with one experiment, valid but for the changes, and a ledger with one line."""
    experiment = {**VALID, **changes}
    (folder / "group").mkdir()
    (folder / "group" / "one.json").write_text(json.dumps(experiment))
    metric = {"value": 0.1, "low": 0.05, "high": 0.2}
    (folder / "ledger.jsonl").write_text(
        json.dumps({"data": "shop", "result": {"recall@10": metric, "ndcg@10": metric, "epochs": 3.04, "seconds": 90}})
    )
    return folder


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_generated_blocks_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert generate(page, text, RESULTS) == text, "run python -m scripts.pages"


def test_plots_are_up_to_date() -> None:
    stale = [path.name for path, text in figures(RESULTS).items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run python -m scripts.pages"


def test_the_references_hold_every_command_and_every_recipe() -> None:
    """That they are up to date is compared below."""
    commands, pages_of_recipes = command_reference()[COMMANDS], recipe_pages()
    for name in ("training train", "training floors", "index build", "service pull", "service key"):
        assert f"\n## python -m {name}\n" in commands
    assert "| `--time-budget` | number |" in commands
    index = pages_of_recipes[RECIPES / "index.md"]
    for name in recipe_names():
        assert f"]({name}.md)" in index and "- Source: " in pages_of_recipes[RECIPES / f"{name}.md"]
    assert "| `method.copying` | `2400000` | `0` |" in pages_of_recipes[RECIPES / "llara.md"]
    assert "`optimizer.rate`" in pages_of_recipes[SETTINGS]


def test_the_command_compares_without_writing() -> None:
    assert main(check=True) == 0


def test_every_current_experiment_is_on_a_page() -> None:
    current = {name for name, each in RESULTS.items() if each["status"] == "current"}
    linked = {name for name in current if f"/{name}.json`" in DOCUMENTATION}
    assert current - BLOCKS - linked == set()


def test_every_older_experiment_is_listed() -> None:
    older = {each["file"].split("/")[0] for each in RESULTS.values() if each["status"] != "current"}
    assert {f"older-{folder}" for folder in older} - BLOCKS == set()


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_figures_of_readme_tables_come_from_the_results(page: Path) -> None:
    known = [round(value, 4) for each in RESULTS.values() for value in numbers(each["rows"])]
    values = {*known, *(round(value, 1) for value in known)}
    halves = {round(float(text), 4) for text in re.findall(r"± ([\d.]+)", readme_tables())}
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    printed = [text for row in rows for text in NUMBER.findall(re.sub(r"`[^`]*`", "", row)) if "." in text]
    assert printed != []
    assert [text for text in printed if round(float(text.replace(",", "")), 4) not in values | halves] == []


def readme_tables() -> str:
    return "\n".join(block(RESULTS, lambda path: path.name) for block in readme.BLOCKS.values())


def test_readme_has_at_most_eight_rows_of_quality() -> None:
    rows = [line for line in readme.BLOCKS["readme-quality"](RESULTS, str).splitlines() if line.startswith("|")]
    assert 3 < len(rows) <= 10  # two are the head
    assert all(row.count("±") == 3 for row in rows[2:])


def test_commands_of_results_name_programs_that_exist() -> None:
    commands = " ".join(each["command"] or "" for each in RESULTS.values())
    modules = set(re.findall(r"python -m ([\w.]+)", commands))
    modules |= {f"benchmarks.{name}" for name in re.findall(r"BENCH=([\w.]+)", commands)}
    paths = [ROOT / name.replace(".", "/") for name in modules]
    assert [path for path in paths if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists())] == []


def test_the_default_benchmark_of_make_exists() -> None:
    (name,) = re.findall(r"^BENCH +\?= (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert (ROOT / "benchmarks" / name.replace(".", "/")).with_suffix(".py").exists()


def test_rows_take_the_metrics_of_their_line_in_the_ledger(tmp_path: Path) -> None:
    keys = ["hr@10", "ndcg@10", "epochs", "minutes"]
    columns = [{"key": key, "title": key, "digits": None} for key in keys]
    folder = written(tmp_path, columns=columns, rows=[{"ledger": 1, "minutes": 7}])
    (row,) = load_results(folder, folder / "ledger.jsonl")["one"]["rows"]
    assert row["ndcg@10"]["high"] == 0.2
    assert (row["epochs"], row["minutes"]) == (3.0, 7)  # what the row says itself stays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "two"}, "not the name of the file"),
        ({"status": "good"}, "status"),
        ({"load": "busy"}, "load"),
        ({"surplus": 1}, "surplus"),
        ({"rows": [{"other": 1}]}, "other"),
        (
            {"rows": [{"ledger": 1, "data": "another"}], "columns": [{"key": "data", "title": "", "digits": None}]},
            "shop",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = written(tmp_path, **changes)
    with pytest.raises(ResultError, match=message):
        load_results(folder, folder / "ledger.jsonl")


def test_a_block_that_nothing_makes_is_an_error() -> None:
    with pytest.raises(KeyError, match="no-such-block"):
        generate(ROOT / "README.md", "<!-- generated: no-such-block -->\n<!-- end -->", RESULTS)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, None, "–"),
        (True, None, "pass"),
        (12345, None, "12,345"),
        (0.0625, 3, "0.062"),
        ({"value": 0.05, "low": 0.04, "high": 0.06}, 2, "0.05 [0.04, 0.06]"),
        ({"value": 0.05, "plus_minus": 0.01}, 2, "0.05 ± 0.01"),
        ([1, 0.5], None, "1, 0.5"),
    ],
)
def test_one_value_is_one_cell(value: Any, digits: int | None, text: str) -> None:
    assert cell(value, digits) == text


def test_columns_without_values_are_left_out() -> None:
    columns = [{"key": key, "title": key, "digits": None} for key in ("a", "b")]
    assert table(columns, [{"a": 1}]).splitlines()[0] == "| a |"


def test_a_measured_table_says_command_commit_and_machine() -> None:
    measured = [each for each in RESULTS.values() if each["machine"]]
    assert measured != []
    for each in measured:
        text = source(each)
        assert "Command: " in text
        assert "Commit: " in text
        assert each["machine"]["processor"] in text


def test_plots_name_every_method_and_follow_the_colour_scheme() -> None:
    dots = [Dot("one", 10, 0.1, 0.05, 0.2), Dot("two", 100, 0.2, None, None)]
    drawn = scatter_plot("a < b", "ms", dots, [("three", 0.15)])
    assert drawn.count("<circle") == 2
    assert scatter_plot("one", "ms", dots[:1]).count("<circle") == 1
    assert all(name in drawn for name in ("one", "two", "three", "a &lt; b", "prefers-color-scheme"))
    assert bar_plot("t", "ms", [("anyo", 2.0), ("other", 1.0)]).count('height="16"') == 2
