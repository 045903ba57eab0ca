"""The benchmark of rankers keeps every row that has ended, and nothing else is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.quality import rankers
from testing.datasets import write_dataset
from testing.models import backbone_folder
from training.data.dataset import read_dataset
from training.data.splits import leave_one_out
from training.recipe import RecipeError

__all__ = ["backbone_folder"]  # a fixture


@pytest.fixture
def words(backbone_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """A command with a tiny model and rated items."""
    folder = write_dataset(tmp_path / "rated", users=20, items=20)
    events = pl.read_csv(folder / "interactions.csv")
    rating = pl.when(pl.col("item_id").str.ends_with("1")).then(2.0).otherwise(4.5)
    events.with_columns(rating.alias("rating")).write_csv(folder / "interactions.csv")
    return [
        "tallrec", "--data", str(folder), "--backbone", str(backbone_folder("qwen3")), "--users", "20", "--layers", "1",
        "--set", 'method.labels=["red","blue"]', "--set", "history.title_tokens=4", "--set", "adapter.kind=lora",
        "--state", str(tmp_path / "state"), "--examples", "8",
    ]  # fmt: skip


def test_a_model_is_asked_about_users_and_titles_of_another_data_set(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without ratings there, by what was chosen; with ratings demanded there, it is refused."""
    other = write_dataset(tmp_path / "other", users=16, items=30, seed=3)
    given = [*words, "--shots", "0", "--test-data", str(other)]
    with pytest.raises(RecipeError, match=r"other has not; allowed is method\.answers=choices"):
        rankers.main(given)
    rankers.main([*given, "--test-answers", "choices"])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    found = row["elsewhere"]
    assert (found["data"], found["answers"]) == ("other", "choices") and found["liked"] == 0.5
    assert found["auc_questions"] == 2 * 16 and 0 <= found["auc_low"] <= found["auc"] <= found["auc_high"] <= 1
    for refused in (["--test-answers", "choices"], ["--test-data", str(other)]):
        with pytest.raises(SystemExit):
            rankers.main(["llamarec", "--id-model", "x", "--data", str(other), *refused])
        assert "--test-" in capsys.readouterr().err


def test_a_moved_model_scores_what_its_titles_say(words: list[str], tmp_path: Path) -> None:
    """With the titles of a second catalog, a row is scored as the same text was in the first one as a free title."""
    recipes: list[Any] = []
    found = rankers.fitted

    def kept(*given: Any) -> Any:
        recipes.append(found(*given))
        return recipes[-1]

    other = leave_one_out(read_dataset(write_dataset(tmp_path / "other", users=16, items=30, seed=3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rankers, "fitted", kept)
        rankers.main([*words, "--shots", "0"])
    ranker = recipes[0].writer
    titles = ranker.read_titles([other.dataset.titles[row] for row in (21, 22, 7)])
    (expected,) = ranker.score([ranker.prepare_candidates(titles[:2], titles[2:])])
    moved = rankers.moved(ranker, other)
    (scores,) = moved.score([moved.prepare_candidates([21, 22], [7])])
    assert scores[0] == pytest.approx(expected[0], abs=1e-6)


def test_a_command_goes_on_after_the_rows_that_have_ended(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[int, int]] = []
    train = rankers.fitted

    def counted(recipe: Any, split: Any, given: Any, shots: int, work: Path) -> Any:
        trained.append((shots, given.seed))
        if trained == [(0, 0), (0, 1), (4, 0)]:
            raise KeyboardInterrupt
        return train(recipe, split, given, shots, work)

    def rows() -> Any:
        rankers.main([*words, "--shots", "0", "4", "--seeds", "0", "1"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]

    monkeypatch.setattr(rankers, "fitted", counted)
    with pytest.raises(KeyboardInterrupt):
        rows()
    assert len(list((tmp_path / "state").iterdir())) == 2, "two rows had ended"
    found = rows()
    assert trained == [(0, 0), (0, 1), (4, 0), (4, 0), (4, 1)], "those are not asked for again"
    assert [(row["shots"], row["seed"]) for row in found] == [(0, 0), (0, 1), (4, 0), (4, 1)]
    assert all(0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1 for row in found)
    assert rows() == found and len(trained) == 5
    words += ["--set", "history.instruction=Will the user like the target"]
    rows()
    assert len(trained) == 9, "another prompt has rows of its own"
