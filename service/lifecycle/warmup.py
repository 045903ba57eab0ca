"""Check of golden answers and warm-up, between the load of an artifact and its first request.

Both go the way of real requests, through batching, forward pass and search, so that whatever is wrong there
(a missing adapter key, another mask, another dtype, a padded batch that differs from a single row) shows
before readiness.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from index.build import least_overlap
from modeling.artifact.folders import one_line
from modeling.artifact.golden import GoldenCase, GoldenItem, GoldenTitle, tolerance_of
from service.artifacts.loading import LoadedArtifact
from service.engine.base import REHEARSING
from service.engine.device_lock import DeviceLock
from service.errors import AnyoError, ModelError, StartError
from service.observability.metrics import Metrics
from service.recommend.base import Recommendation
from service.recommend.dense import DenseRecommender
from service.recommend.requests import RecommendQuery, TitledItem
from service.settings import Settings
from service.stores.guarded import GuardedStore

PATIENCE_S = 300.0  # first passes may compile kernels
LEAST_COSINE = {"bf16": 0.999, "int8": 0.99}  # of a golden vector with the stored one, which is in fp32
SPARE = 5  # items asked for beyond a golden top list: candidates for a near tie at its end
GROUP = 8  # warm-up requests that are sent together
QUEUED_BATCHES = 2  # of a warm-up's queue: the first of them is timed, from its start to that of the next
# The rehearsal is not to be refused for overload, and golden histories are read as they were when they were written.
REHEARSED = {"max_queued_tokens": 2**40, "max_queue_seconds": 1e6, "reuse_block": 1}
WARM_UP_TITLE = "A title that is in no catalog"


async def rehearse(
    parts: LoadedArtifact, store: GuardedStore, settings: Settings, device: DeviceLock | None = None
) -> float:
    """Check the golden answers and warm up, with a recommender of their own; raises StartError.

    Returns the positions a second that full batches get through, 0 without a warm-up.

    Without a cache, so that every answer is computed; with room for all of them at once; and with metrics
    of their own, so that the real ones count users only.
    """
    roomy = settings.model_copy(update={"user_cache_entries": 0, **REHEARSED})
    recommender = DenseRecommender(parts, store, roomy, Metrics(), device=device)
    recommender.start()
    try:
        with rehearsal_of(parts.name):
            await check_golden(recommender)
            await warm_up(recommender, settings)
        return recommender.engine.rate() if settings.warmup_requests else 0.0
    finally:
        await recommender.close(0)


@contextmanager
def rehearsal_of(name: str) -> Iterator[None]:
    """Answer requests to an artifact that does not serve yet; raises StartError with the reason where one fails."""
    token = REHEARSING.set(True)
    try:
        yield
    except AnyoError as error:
        failed = isinstance(error, ModelError) and error.__cause__ is not None
        reason = f"the model fails with {one_line(error.__cause__)}" if failed else error.message
        raise StartError(f"artifact {name} cannot answer its own golden histories: {reason}") from error
    finally:
        REHEARSING.reset(token)


async def check_golden(recommender: DenseRecommender) -> None:
    """Compare the answers to the golden histories with what the artifact says; raises StartError, one sentence."""
    golden = recommender.parts.golden
    if not golden:
        raise StartError(f"artifact {recommender.parts.name}: golden.json holds no history to check")
    # The first alone, the others together: a single row and a batch must both be right.
    answers = [await _ask(recommender, golden[0].history, len(golden[0].top) + SPARE)]
    answers += await asyncio.gather(*(_ask(recommender, case.history, len(case.top) + SPARE) for case in golden[1:]))
    for case, answer in zip(golden, answers, strict=True):
        _compare(recommender.parts, case, answer)


async def warm_up(recommender: DenseRecommender, settings: Settings) -> None:
    """Answer requests made from the golden histories, of all lengths: in groups, then in a queue of full batches."""
    if not settings.warmup_requests:
        return
    await asyncio.to_thread(recommender.meet_lengths)
    await _together(recommender, settings.warmup_requests, GROUP)
    if "text" in recommender.parts.reads:
        query = RecommendQuery(history=[TitledItem(WARM_UP_TITLE)])
        await recommender.recommend(query, time.monotonic() + PATIENCE_S)
    queue = 1 + QUEUED_BATCHES * settings.max_batch_requests
    await _together(recommender, queue, queue)


async def _together(recommender: DenseRecommender, requests: int, group: int) -> None:
    """Ask for golden histories and their newest parts, `group` at a time; no two ask for the same."""
    histories = [case.ids for case in recommender.parts.golden if case.ids]
    made: list[tuple[Sequence[str], int]] = []
    for number in range(requests):
        again, which = divmod(number, len(histories))
        history = histories[which]
        made.append((history[-(1 + number % len(history)) :], 10 + again))
    for start in range(0, len(made), group):
        await asyncio.gather(*(_ask(recommender, *each) for each in made[start : start + group]))


def asked(history: Sequence[GoldenItem]) -> list[str | TitledItem]:
    """Return a golden history as a request has it."""
    return [TitledItem(item.title) if isinstance(item, GoldenTitle) else item for item in history]


def ids_of(history: Sequence[GoldenItem]) -> list[str]:
    """Return the items of a golden history that are given by their ids."""
    return [item for item in history if isinstance(item, str)]


async def _ask(recommender: DenseRecommender, history: Sequence[GoldenItem], k: int) -> Recommendation:
    # The answers that are stored leave out what is given by its id, and not what has one of the titles.
    query = RecommendQuery(history=asked(history), k=k, exclude_seen=False, exclude=ids_of(history))
    return await recommender.recommend(query, time.monotonic() + PATIENCE_S)


def _compare(parts: LoadedArtifact, case: GoldenCase, answer: Recommendation) -> None:
    name = f"golden.json of {parts.name}: history {case.history[-3:]}"
    stored_D = np.asarray(case.vector, np.float32)
    if answer.vector_D is None or answer.vector_D.shape != stored_D.shape:
        shape = None if answer.vector_D is None else answer.vector_D.shape
        raise StartError(f"{name} gives a vector of shape {shape}, and {stored_D.shape} is stored")
    difference = float(np.abs(answer.vector_D - stored_D).max())
    found = [parts.catalog.item_ids[row] for row in answer.rows[: len(case.top)]]
    if parts.precision != "fp32":
        _compare_roughly(name, stored_D, answer.vector_D, set(case.top), set(found), LEAST_COSINE[parts.precision])
        return
    if not difference <= tolerance_of(case):
        raise StartError(
            f"{name} gives a vector that differs from the stored one by {difference:.2g}, and at most "
            f"{tolerance_of(case)} is allowed: the model is not the one that was trained"
        )
    if not parts.index.exact:
        _compare_approximate(name, parts, case, answer, difference)
        return
    if found != case.top and not _near_ties(answer, [parts.catalog.row(item) for item in case.top], difference):
        raise StartError(f"{name} is answered with {found}, and {case.top} is stored: index or catalog is another one")


def _compare_roughly(
    name: str,
    stored_D: NDArray[np.float32],
    found_D: NDArray[np.float32],
    stored: set[str],
    found: set[str],
    least: float,
) -> None:
    """Check at reduced precision: the vectors have a cosine of at least ``least``, and most items are the same.

    Raises:
        StartError: one of them is not the case.
    """
    cosine = float(stored_D @ found_D / max(1e-12, float(np.linalg.norm(stored_D) * np.linalg.norm(found_D))))
    if not cosine >= least:
        raise StartError(
            f"{name} gives a vector of cosine {cosine:.4f} with the stored one, and at least {least} is needed: "
            "the model is not the one that was trained, or does not bear this precision"
        )
    if 2 * len(stored & found) < len(stored):
        raise StartError(f"{name} is answered with {sorted(found)}, and {sorted(stored)} is stored: another catalog")


def _compare_approximate(
    name: str, parts: LoadedArtifact, case: GoldenCase, answer: Recommendation, difference: float
) -> None:
    """An approximate index finds enough of the exact list, and scores what it finds by the inner product."""
    index, rows = parts.index, np.asarray(answer.rows, np.int64)
    wanted = [parts.catalog.row(item) for item in case.top]
    share = sum(row in set(answer.rows[: len(wanted)]) for row in wanted) / max(1, len(wanted))
    if not share >= least_overlap(index.recall_at_10):
        raise StartError(
            f"{name} is answered with {share:.0%} of the items that are stored, and the index states recall "
            f"{index.recall_at_10:g}, so that at least {least_overlap(index.recall_at_10):.0%} are expected: index or "
            "catalog is another one"
        )
    assert answer.vector_D is not None
    (expected,) = index.scores(answer.vector_D[None], index.keys(rows))
    off = float(np.abs(np.asarray(answer.scores, np.float32) - expected).max(initial=0.0))
    if not off <= _rounding(answer, difference):
        raise StartError(f"{name} is answered with scores that differ from the inner products by {off:.2g}")


def _rounding(answer: Recommendation, difference: float) -> float:
    """Return how much a score may differ because processors round otherwise."""
    return 1e-5 * max(1.0, max((abs(score) for score in answer.scores), default=1.0)) + 10 * difference


def _near_ties(answer: Recommendation, expected_rows: Sequence[int | None], difference: float) -> bool:
    """Return whether the answer is the expected one but for items whose scores differ by what rounding
    explains.

    Other processors round otherwise, and what that may swap are items with nearly equal scores.
    """
    score_of: dict[int | None, float] = dict(zip(answer.rows, answer.scores, strict=True))
    allowed = _rounding(answer, difference)
    return all(
        row in score_of and abs(score_of[row] - score) <= allowed
        for row, score in zip(expected_rows, answer.scores, strict=False)
    )
