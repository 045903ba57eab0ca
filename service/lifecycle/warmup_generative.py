"""Check of golden texts and warm-up, between the load of a generative artifact and its first request.

Both go the way of real requests, through batching, writing and grounding.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence

from modeling.artifact.golden import GoldenItem, GoldenTitle, WrittenCase
from service.artifacts.loading import LoadedGenerative
from service.engine.device_lock import DeviceLock
from service.errors import StartError
from service.lifecycle.warmup import asked, ids_of, rehearsal_of
from service.observability.metrics import Metrics
from service.recommend.generative import GenerativeRecommendation, GenerativeRecommender
from service.recommend.requests import GenerativeQuery
from service.settings import Settings
from service.stores.guarded import GuardedStore

PATIENCE_S = 300.0
ROOM = {
    "generative_max_beams": 2**20,  # golden texts are those of the artifact's own settings
    "generative_max_new_tokens": 2**20,
    "generative_batch_tokens": 2**26,
    "generative_queued_tokens": 2**40,
    "generative_queued_requests": 10_000,
    "generative_dense_waiting": 1_000_000,
}  # the rehearsal is not to be refused, neither for overload nor for what requests may ask for
WARM_UP_TITLE = "A title that is in no catalog"
LEAST_KEPT = (
    0.5  # of all golden texts, and of all golden items, where numbers have fewer bits than they were written in
)


async def rehearse_generative(
    parts: LoadedGenerative, store: GuardedStore, settings: Settings, device: DeviceLock
) -> None:
    """Check the golden texts and warm up, with a recommender of their own; raises StartError.

    The device is the one that dense requests are being answered on, and they go first.
    """
    roomy = settings.model_copy(update=ROOM)
    recommender = GenerativeRecommender(parts, store, roomy, Metrics(), device)
    recommender.start()
    try:
        with rehearsal_of(parts.name):
            await check_golden_texts(recommender)
            if settings.warmup_requests and "text" in parts.reads:
                await _ask(recommender, [GoldenTitle(title=WARM_UP_TITLE)], 10)
    finally:
        await recommender.close(0)


async def check_golden_texts(recommender: GenerativeRecommender) -> None:
    """Compare what is written for the golden histories with what the artifact says; raises StartError, one sentence.

    It is the warm-up too: each of them is a whole request.
    """
    golden = recommender.parts.golden
    if not golden:
        raise StartError(f"artifact {recommender.parts.name}: golden.json holds no history to check")
    # The first alone, the others together: a single request and a batch must both be right.
    answers = [await _ask(recommender, golden[0].history, len(golden[0].top))]
    answers += await asyncio.gather(*(_ask(recommender, case.history, len(case.top)) for case in golden[1:]))
    if recommender.parts.precision == "fp32":
        for case, answer in zip(golden, answers, strict=True):
            _compare(recommender.parts, case, answer)
    else:
        _compare_roughly(recommender.parts, answers)


async def _ask(recommender: GenerativeRecommender, history: Sequence[GoldenItem], k: int) -> GenerativeRecommendation:
    query = GenerativeQuery(history=asked(history), k=k, exclude_seen=False, exclude=ids_of(history))
    return await recommender.recommend(query, time.monotonic() + PATIENCE_S)


def _compare(parts: LoadedGenerative, case: WrittenCase, answer: GenerativeRecommendation) -> None:
    name = f"golden.json of {parts.name}: history {case.history[-3:]}"
    texts = _texts(answer)
    if texts[: len(case.texts)] != case.texts:
        raise StartError(
            f"{name} is answered with the texts {texts[:3]}, and {case.texts[:3]} are stored: the model is not the one "
            "that was trained"
        )
    found = [parts.catalog.item_ids[row] for row in answer.rows]
    if found != case.top:
        raise StartError(f"{name} is answered with {found}, and {case.top} is stored: the catalog is another one")


def _compare_roughly(parts: LoadedGenerative, answers: Sequence[GenerativeRecommendation]) -> None:
    """With fewer bits texts of nearly equal scores change places, and one of them may change a whole answer: most of
    the texts, and most of the items, must be those that are stored, over all golden histories together."""
    stored_texts = [text for case in parts.golden for text in case.texts]
    stored_items = [item for case in parts.golden for item in case.top]
    pairs = list(zip(parts.golden, answers, strict=True))
    texts = sum((Counter(case.texts) & Counter(_texts(answer))).total() for case, answer in pairs)
    items = sum(len(set(case.top) & {parts.catalog.item_ids[row] for row in answer.rows}) for case, answer in pairs)
    for what, kept, of in (("texts", texts, len(stored_texts)), ("items", items, len(stored_items))):
        if kept < LEAST_KEPT * of:
            raise StartError(
                f"golden.json of {parts.name}: in {parts.precision} {kept} of the {of} {what} stored are found, and at "
                f"least {LEAST_KEPT:.0%} are needed: the model is not the one that was trained, or does not bear this "
                "precision"
            )


def _texts(answer: GenerativeRecommendation) -> list[str]:
    return [] if answer.written is None else [text.text for text in answer.written.generated]
