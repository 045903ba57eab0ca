"""What rankers around a language model learn from, and their figures: `tallrec` and `llamarec`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from testing.datasets import QUIET, SMALL, write_dataset
from testing.models import backbone_folder
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out
from training.evaluation.pairs import Answers, area_under_curve
from training.loop.examples import Window
from training.loop.fit import FitOptions
from training.methods.base_generative import fit_generative
from training.methods.llamarec import training_candidates, two_stages
from training.methods.next_token import ranks_in, write_all
from training.methods.tallrec import Opinions, TallrecSettings, TallrecTraining, yes_or_no
from training.recipe import RecipeError, training_method
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

PROMPTS = ["history.title_tokens=4", "history.limit=4", "method.validation_users=24", "adapter.kind=full"]
YES_NO = [*PROMPTS, 'method.labels=["red","blue"]', "method.candidates=4"]
LETTERS = [*PROMPTS, 'method.labels=["red","blue","old","new"]', "method.window=4", "method.candidates=6"]


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Items that begin with ``blue`` are disliked by everybody."""
    folder = write_dataset(tmp_path_factory.mktemp("data") / "rated", users=24, items=20)
    events = pl.read_csv(folder / "interactions.csv")
    blue = pl.col("item_id").str.slice(1).cast(pl.Int64) % 10 == 1
    events.with_columns(pl.when(blue).then(2.0).otherwise(4.5).alias("rating")).write_csv(folder / "interactions.csv")
    return read_dataset(folder)


def disliked(data: Dataset, row: int) -> bool:
    return data.titles[row].startswith("blue")


def test_a_constant_scorer_has_half_of_the_area_and_the_area_is_the_share_of_ordered_pairs() -> None:
    rng = np.random.default_rng(0)
    right, scores = rng.random(40) < 0.4, rng.integers(0, 6, 40).astype(np.float32)
    pairs = [(a > b) + (a == b) / 2 for a in scores[right] for b in scores[~right]]
    assert area_under_curve(right, scores) == pytest.approx(np.mean(pairs))
    assert area_under_curve(right, np.zeros(40)) == 0.5
    found = Answers(right, scores).auc()
    assert found.low < found.value < found.high and Answers(right, scores).auc() == found
    with pytest.raises(ValueError, match="both answers are needed"):
        area_under_curve(np.ones(3, bool), np.zeros(3))


def test_ratings_say_what_was_liked(rated: Dataset) -> None:
    split = leave_one_out(rated)
    opinions = Opinions(split, TallrecSettings())
    for user in range(5):
        rows = split.train_row(user).tolist()
        assert opinions.before(user, 1, len(rows) - 1) == [disliked(rated, row) for row in rows[1:]]
        rng = np.random.default_rng(0)
        assert opinions.questions(user, 2, np.array(rows[:2]), rng) == [(rows[2], not disliked(rated, rows[2]))]


def test_without_ratings_the_chosen_item_is_asked_against_another(rated: Dataset, tmp_path: Path) -> None:
    plain = leave_one_out(read_dataset(write_dataset(tmp_path / "plain", users=6, items=20)))
    with pytest.raises(RecipeError, match=r"needs a rating for every interaction.*method\.answers=choices"):
        Opinions(plain, TallrecSettings())
    opinions = Opinions(plain, TallrecSettings(answers="choices"))
    history = plain.train_row(0)[:3]
    (yes, no) = opinions.questions(0, 3, history, np.random.default_rng(0))
    assert yes == (int(plain.train_row(0)[3]), True) and not no[1]
    assert no[0] not in [*history.tolist(), yes[0]]


def test_candidates_of_training_hold_the_target_once_in_any_place_and_nothing_of_the_history() -> None:
    history, target, asked = np.array([3, 8, 9]), 5, []

    def retriever(rows: list[int]) -> np.ndarray[Any, Any]:
        asked.append(rows)
        return np.arange(30, dtype=np.float32)  # the higher the row, the better

    rng, places = np.random.default_rng(0), set()
    for _ in range(60):
        hard = training_candidates(history, target, retriever, items=30, count=6, rng=rng)  # type: ignore[arg-type]
        assert sorted(hard.tolist()) == [5, 25, 26, 27, 28, 29]
        places.add(int(np.flatnonzero(hard == target)[0]))
        plain = training_candidates(history, target, None, items=30, count=6, rng=rng)
        assert len(set(plain.tolist())) == 6 and target in plain and not set(plain.tolist()) & {3, 8, 9}
    assert places == set(range(6)), "its place says nothing"
    assert all(rows == [3, 8, 9] for rows in asked), "the dense stage is asked about what came before only"


def test_tallrec_learns_what_is_liked(rated: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path) -> None:
    split = leave_one_out(rated)
    settings = [*YES_NO, "method.sequences=80", "optimizer.positions=16", "optimizer.backbone_rate=0.003"]
    recipe = get_recipe("tallrec", settings, backbone=str(backbone_folder("qwen3")))
    options = FitOptions(tmp_path, epochs=28)
    fitted = fit_generative(recipe, split, options, folder=None, console=QUIET)
    assert fitted.report["yes_no"]["auc"] > 0.9 and fitted.report["yes_no"]["auc_questions"] == len(split.validation)
    opinions = Opinions(split, TallrecSettings())
    said = yes_or_no(fitted.writer, split.validation, opinions, seed=0)
    assert said.right_Q.tolist() == [not disliked(rated, row) for row in split.validation.rows_T.tolist()]


def test_a_question_of_training_is_the_question_of_serving(
    rated: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from training.methods.base import Job

    split = leave_one_out(rated)
    recipe = get_recipe("tallrec", YES_NO, backbone=str(backbone_folder("qwen3")))
    training: TallrecTraining = training_method("tallrec")(Job(recipe, split, Console(quiet=True)))
    training.named = training.named_items(tmp_path, 0)
    training.prepare(FitOptions(tmp_path))
    training.popularity_N = split.popularity()
    from modeling.generation.base import ItemIdentifiers

    training.names = ItemIdentifiers(training.named.tokens, np.arange(20), training.named.spelling)
    ranker, rows = training.generator(), split.train_row(3)[:4]
    text = training.texts(Window(rows.astype(np.int64), user=3, start=0))
    asked = ranker.prepare_rated(rows[:3].tolist(), training.opinions.before(3, 0, 3), [int(rows[3])])
    candidate = ranker.prompt.candidate(ranker.name(int(rows[3])))
    answer = ranker.prompt.answers[1 if disliked(rated, int(rows[3])) else 0]
    assert text == [*ranker.prompt.prefix, *asked.shared, *candidate, answer]


def test_the_overall_figure_is_that_of_the_final_lists(
    rated: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Brute force: the model is asked about every user, and the target is looked up in the merged list."""
    split = leave_one_out(rated)
    run(get_recipe("sasrec", [*SMALL, "optimizer.epochs=3"]), rated, RunOptions(out=tmp_path / "sasrec"), QUIET)
    settings = [*LETTERS, "method.sequences=12", "optimizer.epochs=1", "method.negatives=retrieved"]
    recipe = get_recipe("llamarec", settings, backbone=str(backbone_folder("qwen3")))
    options = FitOptions(tmp_path / "work", epochs=1)
    collaborative = tmp_path / "sasrec"
    ranker = fit_generative(recipe, split, options, folder=None, collaborative=collaborative, console=QUIET).writer
    found, targets = two_stages(ranker, split.validation), split.validation
    lists_TK = write_all(ranker, list(targets.histories()))
    np.testing.assert_array_equal(found.merged_T, ranks_in(lists_TK, targets.rows_T, 20))
    outside_T = ~found.inside_T
    assert outside_T.any() and found.inside_T.any()
    np.testing.assert_array_equal(found.merged_T[outside_T], found.dense_T[outside_T])
    assert (found.merged_T[found.inside_T] <= ranker.candidates).all()
    assert not np.array_equal(found.merged_T, found.dense_T)
