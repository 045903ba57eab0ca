"""Metrics of P5's task families, in addition to the main protocol.

A rating is predicted as its expectation under the model, which minimises the squared error; the error of always
predicting the mean training rating is reported as a baseline. The direct family answers yes or no for the target and
``OTHERS`` random items, as in P5: a sampled metric, not comparable with metrics over the whole catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from modeling.methods.p5 import P5Generator
from modeling.methods.p5_prompts import HELD_OUT, NO, YES, Template, usable
from training.data.splits import FittedOn, Split, Targets
from training.evaluation.metrics import question_values
from training.loop.fit import sample_targets
from training.methods.next_token import ranks_in, write_all
from training.methods.p5_examples import TaskExamples, TasksSpec

OTHERS = 99
DIRECT_USERS = 200
TEXT_TARGETS = 1000
BATCH = 256

Figures = dict[str, float]
T = TypeVar("T")


def task_figures(
    writer: P5Generator,
    split: Split,
    targets: Targets,
    spec: TasksSpec,
    *,
    fitted_on: FittedOn = "train",
    seed: int = 0,
) -> Figures:
    """Metrics of every family the model was trained on, over ``targets``, by name.

    For the sequential family these are metrics of the held-out wording; the served wording has the main metrics.
    """
    examples = TaskExamples(writer.language, writer.names.tokens, writer.families, spec, split, fitted_on)
    found = _other_wording(writer, targets)
    if "rating" in writer.families:
        found |= _ratings(writer, examples, targets)
    if "direct" in writer.families:
        found |= _direct(writer, examples, sample_targets(targets, DIRECT_USERS, seed), seed)
    for family in ("explanation", "review"):
        if family in writer.families:
            found |= _texts(writer, examples, family, sample_targets(targets, TEXT_TARGETS, seed))
    return {name: round(value, 5) for name, value in found.items()}


def _other_wording(writer: P5Generator, targets: Targets) -> Figures:
    rows_TK = write_all(writer.worded(HELD_OUT["sequential"]), list(targets.histories()))
    values = question_values(ranks_in(rows_TK, targets.rows_T, len(writer.names.tokens)), cuts=(10,))
    return {f"sequential_held_out_{name}": float(values[name].mean()) for name in ("recall@10", "ndcg@10")}


def _ratings(writer: P5Generator, examples: TaskExamples, targets: Targets) -> Figures:
    users, rows = targets.users_T.tolist(), targets.rows_T.tolist()
    asked = zip(users, rows, _known(examples, targets), strict=True)
    rated = [(user, row, known["rating"]) for user, row, known in asked if "rating" in known]
    if not rated:
        return {}
    true_T = np.array([rating for _, _, rating in rated], np.float64)
    wordings = {"rating": usable("rating", {"user", "item", "rating"})[0], "rating_held_out": HELD_OUT["rating"]}
    found = {"rating_rmse_of_mean": _rmse(np.full(len(rated), examples.mean_rating), true_T)}
    for name, template in wordings.items():
        said_T = expected_ratings(writer, examples, template, [(user, row) for user, row, _ in rated])
        found |= {f"{name}_rmse": _rmse(said_T, true_T), f"{name}_mae": float(np.abs(said_T - true_T).mean())}
    return found


def expected_ratings(
    writer: P5Generator, examples: TaskExamples, template: Template, pairs: Sequence[tuple[int, int]]
) -> NDArray[np.float64]:
    """Expected rating [T] of each (user, item) pair under the model."""
    language = writer.language
    prompts = [language.ask(template, examples.fields(user, row)) for user, row in pairs]
    values_R = np.array(language.ratings)

    def expected(part: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        chances_BR = writer.next_logs(part)[:, language.rating_tokens].double().exp().numpy()
        said: NDArray[np.float64] = chances_BR @ values_R / chances_BR.sum(1)
        return said

    return _in_batches(prompts, expected)


def _direct(writer: P5Generator, examples: TaskExamples, targets: Targets, seed: int) -> Figures:
    """Recall@10 and NDCG@10 of the target among random unseen items, ranked by the log odds of yes and no."""
    rng, language = np.random.default_rng([seed, 7]), writer.language
    prompts: list[Sequence[int]] = []
    template = usable("direct", {"user", "item", "chosen"})[0]
    items, longest = len(writer.names.tokens), int(targets.positions_T.max())
    count = min(OTHERS, items - longest - 1)
    for question, (user, row) in enumerate(zip(targets.users_T.tolist(), targets.rows_T.tolist(), strict=True)):
        seen = {*targets.history(question).tolist(), row}
        free = np.setdiff1d(np.arange(items), np.array(sorted(seen)))
        others = rng.choice(free, count, replace=False).tolist()
        prompts += [language.ask(template, examples.fields(user, each)) for each in (row, *others)]
    yes, no = language.words(YES)[0], language.words(NO)[0]

    def sure(part: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        logs_BV = writer.next_logs(part).double()
        margin: NDArray[np.float64] = (logs_BV[:, yes] - logs_BV[:, no]).numpy()
        return margin

    scores_TC = _in_batches(prompts, sure).reshape(len(targets), -1)
    ahead_TC = scores_TC[:, 1:] >= scores_TC[:, :1]  # ties are lost, so that a constant answer wins nothing
    ranks_T = 1 + ahead_TC.sum(1)
    values = question_values(ranks_T, cuts=(10,))
    return {f"direct_{name}_of_{1 + count}": float(values[name].mean()) for name in ("recall@10", "ndcg@10")}


def _texts(writer: P5Generator, examples: TaskExamples, family: str, targets: Targets) -> Figures:
    """Mean loss (nats a token) of the true answers to the first template of a family."""
    texts = []
    for user, row, known in zip(
        targets.users_T.tolist(), targets.rows_T.tolist(), _known(examples, targets), strict=True
    ):
        has = {"user", "item", *known, *(["explanation"] if "review" in known else [])}
        templates = usable("explanation" if family == "explanation" else "review", has)
        if templates and (text := examples.of_interaction(templates[0], user, row, known)) is not None:
            texts.append(text)
    return {f"{family}_loss": float(_in_batches(texts, writer.answer_losses).mean())} if texts else {}


def _known(examples: TaskExamples, targets: Targets) -> list[dict[str, object]]:
    """Column values of the target interactions, empty cells left out, [T]."""
    places = targets.dataset.offsets_U1[targets.users_T] + targets.positions_T
    return [examples.known(place) for place in places.tolist()]


def _in_batches(asked: Sequence[T], answer: Callable[[Sequence[T]], NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([answer(asked[start : start + BATCH]) for start in range(0, len(asked), BATCH)])


def _rmse(said_T: NDArray[np.float64], true_T: NDArray[np.float64]) -> float:
    return float(np.sqrt(((said_T - true_T) ** 2).mean()))
