"""`POST /recommend`."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.http.disconnect import CancelledWhenClientLeaves
from service.http.middleware import request_info
from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.schemas.recommend import RecommendAnswer, RecommendRequest
from service.lifecycle.lookup import AnyRecommender
from service.recommend.base import Recommendation
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
    query = body.query()
    recommender = service.answering(body.artifact, body.user_id, info.request_id)
    info.recipe = recommender.parts.recipe
    deadline = info.started + service.settings.deadline_ms / 1000
    with CancelledWhenClientLeaves(request):
        recommendation = await recommender.recommend(query, deadline)
    info.seconds = recommendation.seconds
    service.metrics.answers(recommendation.source).inc()
    parts, catalog = recommender.parts, recommender.catalog
    recommendation = recommender.shown(recommendation)
    items = [catalog.item_ids[row] for row in recommendation.rows]
    service.feedback.remember(info.request_id, parts, items, recommendation.source)
    if body.artifact is None:
        service.traffic.offer(query, parts.name, items, time.monotonic() - info.started)
    return json_answer(answer_of(service, recommendation, recommender, info.request_id, info.timings_ms()))


def answer_of(
    service: Service,
    recommendation: Recommendation,
    recommender: AnyRecommender,
    request_id: str,
    timings_ms: dict[str, float],
) -> dict[str, Any]:
    """Return the body that every answer with recommended items begins with."""
    parts, catalog = recommender.parts, recommender.catalog
    return {
        "request_id": request_id,
        "items": [
            {"rank": rank, "item_id": catalog.item_ids[row], "title": catalog.titles[row], "score": score}
            for rank, (row, score) in enumerate(zip(recommendation.rows, recommendation.scores, strict=True), 1)
        ],
        "artifact": {"name": parts.name, "version": parts.version, "recipe": parts.recipe},
        "timings_ms": timings_ms,
        "source": recommendation.source,
        "ignored_items": recommendation.ignored,
        "degraded": [*recommendation.degraded, *service.items.degraded()],
    }
