"""`training tune`: searches on validation, goes on where it stopped, and keeps the best artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import training.cli
from modeling.artifact.manifest import read_manifest
from testing.datasets import write_dataset
from training.recipe import RecipeError
from training.recipes import get_recipe, recipe_names
from training.search_space.ranges import ends, space_of
from training.tuning import search as tuning

WITH_SPACE = ["anyo", "hybrid_knn", "item_knn", "item_softmax", "sasrec", "tiger"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "ring")
    return tmp_path


def tune(place: Path, trials: int, *more: str) -> Any:
    words = ["tune", "item_knn", "--data", str(place / "ring"), "--out", str(place / "search"), "--trials", str(trials)]
    return CliRunner().invoke(training.cli.app, [*words, "--json", *more])


def counted(monkeypatch: pytest.MonkeyPatch, *, cut: int | None = None, fail: bool = False) -> list[tuple[int, float]]:
    """Settings of the trainings from now on; the one numbered ``cut`` is interrupted, or all fail."""
    seen: list[tuple[int, float]] = []
    real = tuning.run

    def run(recipe: Any, *args: Any) -> Any:
        seen.append((recipe.method.last, recipe.method.decay))
        if len(seen) == cut:
            raise KeyboardInterrupt
        if fail:
            raise RecipeError("cannot be")
        return real(recipe, *args)

    monkeypatch.setattr(tuning, "run", run)
    return seen


def test_the_best_is_kept_and_a_second_call_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    done = tune(place, 3)
    assert done.exit_code == 0, done.output
    first, recipe = json.loads(done.stdout), get_recipe("item_knn")
    assert seen[0] == (recipe.method.last, recipe.method.decay), "the recipe as it is"  # type: ignore[attr-defined]
    assert len(seen) == len(first["trials"]) == 3
    again = json.loads(tune(place, 5).stdout)
    assert len(seen) == 5 and again["trials"][:3] == first["trials"]
    assert again["validation_ndcg@10"] == max(trial["ndcg@10"] for trial in again["trials"])
    manifest = read_manifest(place / "search" / "artifact")
    assert manifest.version == again["version"]
    assert manifest.metrics["validation_ndcg@10"] == again["validation_ndcg@10"]
    assert list((place / "search" / "trials").iterdir()) == []
    assert json.loads((place / "search" / "best.json").read_text()) == again


def test_a_trial_that_was_cut_off_is_begun_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch, cut=2)
    assert tune(place, 3).exit_code != 0 and len(seen) == 2
    done = tune(place, 3)
    assert done.exit_code == 0, done.output
    assert seen[2] == seen[1] and len(seen) == 4 and len(json.loads(done.stdout)["trials"]) == 3


def test_trials_without_a_figure_count_and_say_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch, fail=True)
    done = tune(place, 2)
    assert done.exit_code == 2 and "no trial gave a figure" in done.stderr.replace("\n", " ")
    assert len(seen) == 2 and "cannot be" in (place / "search" / "study.log").read_text()


def test_another_search_is_refused_and_what_cannot_be_searched(place: Path) -> None:
    assert tune(place, 1).exit_code == 0
    for more, message in (
        (["--seed", "1"], "another seed"),
        (["--set", "method.last=5"], "another recipe_and_space"),
        (["--set", "method.last=5", "--set", "method.decay=0.5"], "nothing is left to search"),
        (["--precision", "int8"], "allowed are fp32 and bf16"),
    ):
        done = tune(place, 1, *more)
        assert done.exit_code == 2 and message in done.stderr.replace("\n", " "), done.stderr
    with pytest.raises(RecipeError, match="has no space to search"):
        space_of("popularity")


def test_no_trial_is_begun_that_would_end_after_the_budget(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counted(monkeypatch)
    assert tune(place, 4, "--time-budget", "9", "--trial-budget", "10").exit_code == 2 and not seen


def test_every_recipe_can_be_built_at_the_ends_of_its_space() -> None:
    found = []
    for name in recipe_names():
        try:
            space = space_of(name)
        except RecipeError:
            continue
        found.append(name)
        for settings in ends(space):
            get_recipe(name, [f"{path}={json.dumps(value)}" for path, value in settings.items()])
    assert found == WITH_SPACE
