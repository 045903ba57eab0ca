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

import anyo
from index.command_line.one_writer import BeingWrittenError
from modeling.artifact.manifest import MANIFEST, read_manifest, seal
from modeling.methods import load
from testing.datasets import SMALL, ring_dataset
from training.choosing import candidates as rules
from training.choosing import choose as choosing
from training.choosing.candidates import Candidate, Speed, candidates_for
from training.data.dataset import Dataset
from training.recipe import RecipeError
from training.recipes import get_recipe
from training.run import RunOptions

QUIET = Console(quiet=True)
COUNTS = ["popularity", "markov", "item_knn", "hybrid_knn"]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=40, items=20)


LONG = Speed(30)
"""Time for everything, on a data set of some hundred interactions."""


def names(dataset: Dataset, speed: Speed = LONG) -> list[str]:
    return [each.name for each in candidates_for(dataset, speed)]


def titled(dataset: Dataset, titles: Sequence[str]) -> Dataset:
    return replace(dataset, items=dataset.items.with_columns(pl.Series("title", titles)))


def test_titles_decide_which_networks_are_tried(ring: Dataset) -> None:
    assert names(ring) == [*COUNTS, "newest-items", "sasrec-titles", "anyo-minilm"]
    japanese = titled(ring, [f"赤い椅子 {row}" for row in range(ring.n_items)])
    assert names(japanese) == [*COUNTS, "newest-items", "sasrec-titles", "anyo-tiny"]
    assert candidates_for(japanese, LONG)[5].recipe.items.text_source == "tiny"
    nameless = titled(ring, ring.item_ids)
    alike = titled(ring, ["Product"] * ring.n_items)
    imported = titled(ring, [f"Unnamed item {row}" for row in range(ring.n_items)])
    imported = replace(imported, items=imported.items.with_columns(title_missing=pl.lit(value=True)))
    for untitled in (nameless, alike, imported):
        assert names(untitled)[-3:] == ["newest-items", "sasrec", "sasrec-recent"]
        assert names(untitled)[:-3] == (COUNTS[:3] if untitled is alike else COUNTS), "it compares titles that differ"


def test_the_reason_names_what_reads_the_titles(ring: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "tiny reads the titles: minilm is not installed (" in candidates_for(ring, LONG)[4].why
    japanese = titled(ring, [f"赤い椅子 {row}" for row in range(ring.n_items)])
    assert (
        candidates_for(japanese, LONG)[4].why == "tiny reads the titles: 100% of them are Chinese, Japanese or Korean"
    )


def test_size_decides_too(ring: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MANY_ITEMS", ring.n_items - 1)
    objectives = [each.recipe.method.objective.kind for each in candidates_for(ring, LONG)[3:]]
    assert objectives == ["sampled"] * 3
    assert names(ring)[:4] == [*COUNTS[:3], "newest-items"], "not all pairs of so many items are compared"
    monkeypatch.setattr(rules, "FULL_TABLE", 10)
    assert candidates_for(ring, LONG)[2].recipe.method.neighbours == rules.NEAREST, "its table would be large"


def test_the_less_time_there_is_the_fewer_networks_share_it(ring: Dataset) -> None:
    """Each is to come to a few epochs, as recorded trainings did; a language model takes longest."""
    untitled = titled(ring, ring.item_ids)
    for minutes, expected, without in [
        (30, {"newest-items": 0.1, "sasrec-titles": 0.3, "anyo-minilm": 0.6}, ["sasrec", "sasrec-recent"]),
        (15, {"newest-items": 0.1, "sasrec-titles": 0.45, "sasrec": 0.45}, ["sasrec", "sasrec-recent"]),
        (5, {"newest-items": 0.1, "sasrec-titles": 0.9}, ["sasrec-recent"]),
    ]:
        # as many interactions as amazon-beauty has
        speed = Speed(minutes * ring.n_interactions / 198_502)
        shares = {each.name: each.share for each in candidates_for(ring, speed) if each.share}
        assert shares == expected and sum(shares.values()) == pytest.approx(1)
        assert names(untitled, speed) == [*COUNTS, "newest-items", *without] or minutes == 5
    assert names(untitled, Speed(1e-6)) == [*COUNTS, "newest-items", "sasrec-recent"]
    assert names(ring, Speed(1e-6, times=1e9)) == names(ring), "a faster machine needs less time"


def test_minutes_are_shared_by_what_trains(ring: Dataset) -> None:
    found = rules.shares_of(candidates_for(ring, LONG), 30)
    assert found == {**dict.fromkeys(COUNTS, None), "newest-items": 3.0, "sasrec-titles": 9.0, "anyo-minilm": 18.0}


def few(*more: Candidate) -> list[Candidate]:
    counts = [Candidate(name, get_recipe(name), 0.0, "counts") for name in ("popularity", "markov")]
    return [*counts, *more]


def network(share: float) -> Candidate:
    return Candidate("network", get_recipe("sasrec", [*SMALL, "optimizer.epochs=2"]), share, "a test")


def test_the_best_on_validation_is_written_and_says_what_else_was_tried(ring: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "shop"
    other = replace(
        network(0.5), name="newest", recipe=get_recipe("sasrec", [*rules.NEWEST, "items.dim=32", "optimizer.epochs=2"])
    )
    choice = choosing.choose(few(network(0.5), other), ring, RunOptions(out=out), 5, QUIET)
    figures = {each.name: each.figure for each in choice.tried}
    assert len(figures) == 4 and choice.chosen == max(figures, key=lambda name: figures[name] or 0)
    manifest = read_manifest(out)
    assert manifest.name == "shop" and manifest.metrics[choosing.METRIC] == figures[choice.chosen]
    assert {each["name"]: each[choosing.METRIC] for each in manifest.training["choice"]["tried"]} == figures
    assert load(out) is not None, "its files are those that the manifest names"
    assert [path.name for path in tmp_path.iterdir() if "candidates" in path.name] == []


def test_what_only_counts_is_chosen_where_it_is_best(ring: Dataset, tmp_path: Path) -> None:
    weak = replace(network(1.0), recipe=get_recipe("sasrec", [*SMALL, "optimizer.epochs=1", "optimizer.rate=1e-9"]))
    choice = choosing.choose(few(weak), ring, RunOptions(out=tmp_path / "shop"), 5, QUIET)
    figures = {each.name: each.figure or 0 for each in choice.tried}
    assert choice.chosen == "markov" and figures["markov"] > figures["network"]
    found = anyo.load(tmp_path / "shop")
    assert found.recipe == "markov" and len(found.recommend(["i1"])) == 10


def test_a_candidate_without_a_model_is_left_out_with_its_reason(ring: Dataset, tmp_path: Path) -> None:
    choice = choosing.choose(few(network(1e-9)), ring, RunOptions(out=tmp_path / "shop"), 1, QUIET)
    last = choice.tried[-1]
    assert (
        last.figure is None
        and "of which this candidate has" in last.reason
        and choice.chosen in ("popularity", "markov")
    )
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


def test_another_time_budget_goes_on_with_what_no_budget_cut(
    ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[tuple[str, float | None]] = []
    real = choosing.run

    def run(recipe: Any, dataset: Dataset, options: RunOptions, console: Console) -> Any:
        began.append((recipe.name, options.time_budget))
        if len(began) == 4:
            raise KeyboardInterrupt
        result = real(recipe, dataset, options, console)
        if began == [*counted, ("sasrec", 1.0)]:  # as a budget that ends in a later epoch leaves it
            manifest = read_manifest(options.out)
            (options.out / MANIFEST).unlink()
            training = {**manifest.training, "stopped_by": "time budget"}
            seal(options.out, manifest.model_copy(update={"training": training}))
        return result

    counted: list[tuple[str, float | None]] = [("popularity", None), ("markov", None)]
    monkeypatch.setattr(choosing, "run", run)
    networks = [network(0.5), replace(network(0.5), name="other")]
    options = RunOptions(out=tmp_path / "shop")
    with pytest.raises(KeyboardInterrupt):
        choosing.choose(few(*networks), ring, options, 2, QUIET)
    choosing.choose(few(*networks), ring, options, 4, QUIET)
    assert began == [*counted, *[("sasrec", 1.0)] * 2, *[("sasrec", 2.0)] * 2], "what counts is not made again"
    assert [path.name for path in tmp_path.iterdir()] == ["shop"], "nothing of the first budget is left"


def test_a_second_process_at_the_same_choice_is_refused(
    ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = RunOptions(out=tmp_path / "shop")

    def run(*_: object) -> None:
        choosing.choose(few(), ring, options, 5, QUIET)

    monkeypatch.setattr(choosing, "_tried", run)
    with pytest.raises(BeingWrittenError, match=r"another process .* writes .*shop"):
        choosing.choose(few(), ring, options, 5, QUIET)


def test_what_no_candidate_can_use_is_said_once_and_before(
    ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"^split 'bogus' not found"):
        choosing.choose(few(), ring, RunOptions(out=tmp_path / "shop", split="bogus"), 5, QUIET)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="one process: started in 2"):
        choosing.choose(few(), ring, RunOptions(out=tmp_path / "shop"), 5, QUIET)
    assert not [*tmp_path.iterdir()]


def test_the_command_prints_one_object(ring: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from testing.datasets import write_dataset
    from training.cli import app

    monkeypatch.setattr(rules, "candidates_for", lambda dataset, speed: few())
    data = write_dataset(tmp_path / "data", users=40, items=20)
    result = CliRunner().invoke(app, ["choose", "--data", str(data), "--out", str(tmp_path / "shop"), "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["chosen"] in ("popularity", "markov") and len(found["tried"]) == 2
    assert found["targets"] == 40 and "validation has 40 targets" in result.stderr
