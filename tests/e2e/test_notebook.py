"""The notebook "Dense against generative": every cell runs on real films, and what it shows follows from them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import polars as pl
import pytest
import typer

import training.cli
from scripts.notebook import NotebookError, execute, main, parameters
from testing.datasets import QUIET
from testing.models import write_backbone
from training.data import known_names
from training.data.dataset import read_dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "getting-started" / "dense-against-generative.ipynb"
USERS, FILMS, ASKED = 40, 60, 12
SHORT = ["optimizer.epochs=1", "optimizer.positions=200"]
RECIPES = {
    "dense": ("anyo", [*SHORT, "items.dim=16", "history.limit=8"]),
    "generative": (
        "genre",
        [*SHORT, "history.title_tokens=8", "history.limit=4", "method.beams=20", "method.validation_users=8"],
    ),
}


def write_extract(source: Path, folder: Path) -> Path:
    """Write the last films of some users, from the films that are taken most often."""
    folder.mkdir()
    items = [json.loads(line) for line in (source / "items.jsonl").read_text().splitlines()]
    taken = pl.read_csv(source / "interactions.csv.gz", infer_schema=False)
    often = taken["item_id"].value_counts(sort=True)["item_id"].head(FILMS).to_list()
    users = taken["user_id"].unique(maintain_order=True).head(USERS).to_list()
    kept = taken.filter(pl.col("item_id").is_in(often), pl.col("user_id").is_in(users))
    kept.group_by("user_id", maintain_order=True).tail(8).write_csv(folder / "interactions.csv")
    lines = [json.dumps(item) for item in items if item["item_id"] in set(often)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def values(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Parameters of an execution: an extract of the films, and models that were trained on it for one epoch."""
    folder = tmp_path_factory.mktemp("notebook")
    data = write_extract(real_data("movielens-small"), folder / "films")
    dataset = read_dataset(data)
    backbone = write_backbone(folder / "backbone", "qwen3", dataset.titles)
    for kind, (name, settings) in RECIPES.items():
        recipe = get_recipe(name, settings, backbone=str(backbone))
        run(recipe, dataset, RunOptions(out=folder / kind), QUIET)
    return {"DATA": str(data), "ARTIFACTS": str(folder), "USERS": ASKED}


def outputs_of(notebook: Any) -> str:
    return "\n".join(
        output.text if output.output_type == "stream" else output.data["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


def test_it_shows_both_answers_and_compares_them(values: dict[str, Any]) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    done = execute(notebook, values)
    assert [cell.source for cell in done.cells] == [cell.source for cell in notebook.cells]
    shown = outputs_of(done)
    assert f"{ASKED} users of films" in shown
    for recipe, _ in RECIPES.values():
        assert re.search(rf"┆ {recipe} +┆", shown)
    assert re.search(r"NDCG@10, dense minus generative: [+-]0\.\d{3} \(95 %: [+-]0\.\d{3} to [+-]0\.\d{3}\)", shown)
    for model in (*RECIPES, "popularity"):
        assert re.search(rf"│ {model} +┆ 0\.\d{{3}} ± 0\.\d{{3}} ", shown), shown
    titles = {json.loads(line)["title"] for line in (Path(values["DATA"]) / "items.jsonl").read_text().splitlines()}
    named = re.findall(r"^next: (.+)$", shown, flags=re.MULTILINE)
    assert len(named) == 3 and set(named) <= titles


def test_an_unknown_parameter_is_refused_before_anything_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.raises(NotebookError, match=r"parameter 'USER' is not in the notebook; there are DATA, ARTIFACTS"):
        execute(notebook, {"USER": 3})


def test_its_own_settings_are_commands_and_its_outputs_are_kept_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    own = parameters(notebook)
    assert own["DATA"] in known_names()
    train = typer.main.get_command(training.cli.app).commands["train"]  # type: ignore[attr-defined]
    for arguments in own["TRAIN"].values():
        train.make_context("train", [*arguments, "--data", own["DATA"], "--out", "x", "--time-budget", "20"])
        get_recipe(arguments[0])
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) >= 7
    assert NOTEBOOK.stat().st_size < 60_000
    assert str(ROOT) not in NOTEBOOK.read_text() and "/root" not in NOTEBOOK.read_text()
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


def test_the_program_writes_outputs_into_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("WORD = 'a'\nTIMES = 2", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("WORD * TIMES if TIMES else 1 / 0"),
        ]
    )
    path = tmp_path / "small.ipynb"
    nbformat.write(notebook, path)
    assert main([str(path), "--set", "TIMES=3", "--set", "WORD=b"]) == 0
    done = nbformat.read(path, as_version=4)
    assert done.cells[0].source == "WORD = 'a'\nTIMES = 2"
    assert done.cells[1].outputs[0].data["text/plain"] == "'bbb'"
    before = path.read_text()
    assert main([str(path), "--set", "TIMES=0"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert path.read_text() == before
