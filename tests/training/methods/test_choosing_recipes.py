"""The choice of a recipe: rules that look at the data, and the best candidate on validation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from modeling.artifact.manifest import read_manifest
from modeling.methods import load
from testing.datasets import SMALL, ring_dataset
from training.choosing import candidates as rules
from training.choosing import choose as choosing
from training.choosing.candidates import Candidate, candidates_for
from training.data.dataset import Dataset
from training.recipe import RecipeError
from training.recipes import get_recipe
from training.run import RunOptions

QUIET = Console(quiet=True)
COUNTS = ["popularity", "markov", "item_knn"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=40, items=20)


def names(dataset: Dataset) -> list[str]:
    return [each.name for each in candidates_for(dataset)]


def titled(dataset: Dataset, titles: Sequence[str]) -> Dataset:
    return replace(dataset, items=dataset.items.with_columns(pl.Series("title", titles)))


def test_titles_decide_which_networks_are_tried(ring: Dataset) -> None:
    assert names(ring) == [*COUNTS, "sasrec-titles", "anyo-minilm"]
    japanese = titled(ring, [f"赤い椅子 {row}" for row in range(ring.n_items)])
    assert names(japanese) == [*COUNTS, "sasrec-titles", "anyo-tiny"]
    assert candidates_for(japanese)[3].recipe.items.text_source == "tiny"
    nameless = titled(ring, ring.item_ids)
    assert names(nameless) == [*COUNTS, "sasrec", "sasrec-recent"]


def test_size_decides_too(ring: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "LARGE", ring.n_interactions - 1)
    assert names(ring) == [*COUNTS, "sasrec-titles", "sasrec"], "a language model would not end an epoch"
    monkeypatch.setattr(rules, "MANY_ITEMS", ring.n_items - 1)
    objectives = [each.recipe.method.objective.kind for each in candidates_for(ring)[3:]]
    assert objectives == ["sampled", "sampled"]


def test_minutes_are_shared_by_what_trains(ring: Dataset) -> None:
    found = rules.shares_of(candidates_for(ring), 30)
    assert found == {**dict.fromkeys(COUNTS, None), "sasrec-titles": 12.0, "anyo-minilm": 18.0}


def few(*more: Candidate) -> list[Candidate]:
    counts = [Candidate(name, get_recipe(name), 0.0, "counts") for name in ("popularity", "markov")]
    return [*counts, *more]


def network(share: float) -> Candidate:
    return Candidate("network", get_recipe("sasrec", [*SMALL, "optimizer.epochs=2"]), share, "a test")


def test_the_best_on_validation_is_written_and_says_what_else_was_tried(ring: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "shop"
    choice = choosing.choose(few(network(1.0)), ring, RunOptions(out=out), 5, QUIET)
    figures = {each.name: each.figure for each in choice.tried}
    assert len(figures) == 3 and choice.chosen == max(figures, key=lambda name: figures[name] or 0)
    manifest = read_manifest(out)
    assert manifest.name == "shop" and manifest.metrics[choosing.METRIC] == figures[choice.chosen]
    assert {each["name"]: each[choosing.METRIC] for each in manifest.training["choice"]["tried"]} == figures
    assert load(out) is not None, "its files are those that the manifest names"
    assert [path.name for path in tmp_path.iterdir() if "candidates" in path.name] == []


def test_a_candidate_without_a_model_is_left_out_with_its_reason(ring: Dataset, tmp_path: Path) -> None:
    choice = choosing.choose(few(network(1e-9)), ring, RunOptions(out=tmp_path / "shop"), 1, QUIET)
    last = choice.tried[-1]
    assert last.figure is None and "time budget" in last.reason and choice.chosen in ("popularity", "markov")
    with pytest.raises(RecipeError, match="no candidate gave a model: network: the time budget"):
        choosing.choose([network(1e-9)], ring, RunOptions(out=tmp_path / "other"), 1, QUIET)


def test_it_goes_on_after_a_kill(ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    real = choosing.run

    def run(recipe: Any, dataset: Dataset, options: RunOptions, console: Console) -> Any:
        began.append(recipe.name)
        if began == ["popularity", "markov"]:
            raise KeyboardInterrupt
        return real(recipe, dataset, options, console)

    monkeypatch.setattr(choosing, "run", run)
    options = RunOptions(out=tmp_path / "shop")
    with pytest.raises(KeyboardInterrupt):
        choosing.choose(few(), ring, options, 5, QUIET)
    choosing.choose(few(), ring, options, 5, QUIET)
    assert began == ["popularity", "markov", "markov"]


def test_the_command_prints_one_object(ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from testing.datasets import write_dataset
    from training.cli import app

    monkeypatch.setattr(rules, "candidates_for", lambda dataset: few())
    data = write_dataset(tmp_path / "data", users=40, items=20)
    result = CliRunner().invoke(app, ["choose", "--data", str(data), "--out", str(tmp_path / "shop"), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["chosen"] in ("popularity", "markov") and len(found["tried"]) == 2
