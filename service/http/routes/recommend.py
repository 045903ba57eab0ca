"""`POST /recommend`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import InvalidInput
from service.http.disconnect import CancelledWhenClientLeaves
from service.http.middleware import RequestInfo, milliseconds, request_info
from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.routes.item_fields import ItemFields, item_fields
from service.http.schemas.recommend import MAX_EXPLAINED, RecommendAnswer, RecommendRequest
from service.lifecycle.lookup import AnyRecommender
from service.recommend.base import NamedArtifact, Recommendation
from service.recommend.dense import DenseRecommender
from service.recommend.diversity import Diversity
from service.recommend.reranking import SecondStage, StagedAnswer
from service.recommend.sentences import WrittenSentence
from service.service import Service

router = APIRouter(tags=["recommend"])


@router.post(
    "/recommend",
    responses=answers(RecommendAnswer, 400, 404, 409, 413, 422, 429, 503, 504),
    openapi_extra=takes(RecommendRequest),
)
@opened_by(Right.API)
async def recommend(request: Request) -> Response:
    """Recommend items for a history, a stored user, or both."""
    service, info = service_of(request), request_info(request)
    body = await read_body(request, RecommendRequest)
    deadline = info.started + service.settings.deadline_ms / 1000
    with CancelledWhenClientLeaves(request):
        computed = await compute(service, body, info.request_id, deadline, info)
    return json_answer(answered(service, computed, info))


@dataclass(frozen=True, slots=True)
class Computed:
    """A computed answer before it is serialised; `seconds` in all."""

    body: RecommendRequest
    request_id: str
    recommender: DenseRecommender
    fields: ItemFields
    second: SecondStage | None
    diversity: Diversity | None
    staged: StagedAnswer
    seconds: float


async def compute(
    service: Service, body: RecommendRequest, request_id: str, deadline: float, info: RequestInfo | None = None
) -> Computed:
    """Compute the answer to one request; `info` is that of an HTTP request of its own, None for an entry of a batch.
    Raises as `Stages.recommend`, and as `Service.answering`."""
    started = time.monotonic() if info is None else info.started
    recommender = service.answering(body.artifact, body.user_id, request_id)
    if info is not None:
        info.recipe = recommender.parts.recipe
    fields = item_fields(body.fields, recommender.catalog)
    second, diverse = _second_stage(service, body), _diversity(body)
    speaker = service.speaker() if body.explain else None
    staged = await service.stages.recommend(recommender, body.query(), second, body.explain, deadline, diverse, speaker)
    return Computed(body, request_id, recommender, fields, second, diverse, staged, time.monotonic() - started)


def answered(service: Service, computed: Computed, info: RequestInfo | None = None) -> dict[str, Any]:
    """Return the body of an answer, which is counted and remembered; nothing may be awaited until it is sent, because
    items that were withdrawn meanwhile are left out here."""
    body, recommender, second, diverse = computed.body, computed.recommender, computed.second, computed.diversity
    parts, catalog, request_id = recommender.parts, recommender.catalog, computed.request_id
    staged = computed.staged.shown(catalog)
    recommendation = staged.answer
    service.metrics.answers(recommendation.source).inc()
    items = [catalog.item_ids[row] for row in recommendation.rows]
    service.feedback.remember(request_id, parts, items, recommendation.source)
    if body.artifact is None:

        async def again(other: DenseRecommender, deadline: float) -> Sequence[str]:
            found = await service.stages.recommend(other, body.query(), second, False, deadline, diverse)
            return [other.catalog.item_ids[row] for row in found.shown(other.catalog).answer.rows]

        service.traffic.offer(again, parts.name, items, computed.seconds)
    if info is None:
        timings_ms = milliseconds(recommendation.seconds | {"total": computed.seconds})
    else:
        info.seconds = recommendation.seconds
        timings_ms = info.timings_ms()
    answer = answer_of(service, recommendation, recommender, request_id, timings_ms, computed.fields)
    if second is not None:
        answer["rerank"] = _reranked_by(second) if staged.reranked else None
    if body.explain:
        answer["explanation"] = _explanation(staged, recommender)
    return answer


def _second_stage(service: Service, body: RecommendRequest) -> SecondStage | None:
    """Return who ranks again, and refuse what cannot be; raises InvalidInput, UnknownName, Conflict."""
    if body.explain and body.k > MAX_EXPLAINED:
        raise InvalidInput(f"k is {body.k}, and with explain at most {MAX_EXPLAINED} are allowed", field="k")
    stage = body.rerank
    if stage is None:
        return None
    if stage.candidates < body.k:
        raise InvalidInput(
            f"rerank.candidates is {stage.candidates}, and k is {body.k}: at least k candidates are needed",
            field="rerank.candidates",
        )
    return SecondStage(service.ranker(stage.artifact, stage.recipe, "rerank."), stage.candidates)


def _diversity(body: RecommendRequest) -> Diversity | None:
    """Return how the answer avoids repetition, and refuse fewer candidates than items; raises InvalidInput."""
    if body.diversity is None:
        return None
    wanted = body.diversity.wanted(body.k)
    if wanted.candidates < body.k:
        raise InvalidInput(
            f"diversity.candidates is {wanted.candidates}, and k is {body.k}: at least k candidates are needed",
            field="diversity.candidates",
        )
    return wanted


def _reranked_by(second: SecondStage) -> dict[str, Any]:
    return {"artifact": _named(second.ranker.parts), "candidates": second.candidates}


def _explanation(staged: StagedAnswer, recommender: DenseRecommender) -> dict[str, Any] | None:
    explanation = staged.explanation
    if explanation is None:
        return None
    read = recommender.catalog.trained  # the model reads a history as it was trained
    ids, titles = read.item_ids, read.titles
    influence_KH = explanation.influence_KH
    nearest = zip(explanation.nearest_K.tolist(), explanation.cosine_K.tolist(), strict=True)
    return {
        "artifact": _named(recommender.parts),
        "history": [
            {"item_id": None, "title": part} if isinstance(part, str) else {"item_id": ids[part], "title": titles[part]}
            for part in explanation.history
        ],
        "influence": {
            "method": "leave_one_out",
            "values": None if influence_KH is None else influence_KH.tolist(),
        },
        "nearest": {
            "method": "item_vector_cosine",
            "values": [None if place < 0 else {"place": place, "cosine": cosine} for place, cosine in nearest],
        },
        "sentence": _sentence(staged.sentence, recommender),
    }


def _sentence(sentence: WrittenSentence | None, recommender: DenseRecommender) -> dict[str, Any] | None:
    if sentence is None:
        return None
    return {
        "method": "constrained_decoding",
        "artifact": None if sentence.by is None else _named(sentence.by),
        "item_id": None if sentence.text is None else recommender.catalog.item_ids[sentence.row],
        "text": sentence.text,
        "named": list(sentence.named),
        "reason": sentence.reason,
    }


def _named(parts: NamedArtifact) -> dict[str, str]:
    return {"name": parts.name, "version": parts.version, "recipe": parts.recipe}


def answer_of(
    service: Service,
    recommendation: Recommendation,
    recommender: AnyRecommender,
    request_id: str,
    timings_ms: dict[str, float],
    fields: ItemFields,
) -> dict[str, Any]:
    """Return the body that every answer with recommended items begins with."""
    parts, catalog = recommender.parts, recommender.catalog
    items: list[dict[str, Any]] = [
        {"rank": rank, "item_id": catalog.item_ids[row], "title": catalog.titles[row], "score": score}
        for rank, (row, score) in enumerate(zip(recommendation.rows, recommendation.scores, strict=True), 1)
    ]
    fields.add_to(items, recommendation.rows, catalog)
    return {
        "request_id": request_id,
        "items": items,
        "artifact": _named(parts),
        "timings_ms": timings_ms,
        "source": recommendation.source,
        "ignored_items": recommendation.ignored,
        "degraded": [*recommendation.degraded, *service.items.degraded()],
    }
