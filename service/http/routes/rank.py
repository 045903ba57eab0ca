"""`POST /rank`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from index.live_catalog import LiveCatalog
from service.http.disconnect import CancelledWhenClientLeaves
from service.http.middleware import request_info
from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.routes.item_fields import ItemFields, item_fields
from service.http.schemas.rank import RankAnswer, RankRequest
from service.lifecycle.lookup import AnyRecommender
from service.recommend.dense import DenseRecommender
from service.recommend.ranking import Ranking
from service.recommend.reranking import first_places
from service.service import Service

router = APIRouter(tags=["recommend"])


@router.post(
    "/rank",
    responses=answers(RankAnswer, 400, 404, 409, 413, 422, 429, 503, 504),
    openapi_extra=takes(RankRequest),
)
@opened_by(Right.API)
async def rank(request: Request) -> Response:
    """Order given candidates for a history, a stored user, or both."""
    service, info = service_of(request), request_info(request)
    body = await read_body(request, RankRequest)
    query = body.query()
    ranker = service.ranking(body.artifact, body.recipe, body.user_id, info.request_id)
    parts, settings = ranker.parts, service.settings
    info.recipe = parts.recipe
    fields = item_fields(body.fields, ranker.catalog)
    allowed_ms = settings.deadline_ms if ranker.kind == "dense" else settings.generative_deadline_ms
    with CancelledWhenClientLeaves(request):
        ranking = (await ranker.rank(query, info.started + allowed_ms / 1000)).shown(ranker.catalog)
    info.seconds = ranking.seconds
    service.metrics.answers(ranking.source).inc()
    service.metrics.rank_candidates(parts.recipe).observe(len(ranking.items))
    items = _ids(ranking, ranker.catalog)
    service.feedback.remember(info.request_id, parts, items, ranking.source)
    if body.artifact is None and body.recipe is None and ranker.kind == "dense":

        async def again(other: DenseRecommender, deadline: float) -> Sequence[str]:
            return first_places(_ids((await other.rank(query, deadline)).shown(other.catalog), other.catalog))

        service.traffic.offer(again, parts.name, first_places(items), time.monotonic() - info.started)
    return json_answer(_answer(service, ranking, ranker, info.request_id, info.timings_ms(), fields))


def _ids(ranking: Ranking, catalog: LiveCatalog) -> list[str]:
    return [catalog.item_ids[item] for item in ranking.items if not isinstance(item, str)]


def _answer(
    service: Service,
    ranking: Ranking,
    ranker: AnyRecommender,
    request_id: str,
    timings_ms: dict[str, float],
    fields: ItemFields,
) -> dict[str, Any]:
    parts, ids, titles = ranker.parts, ranker.catalog.item_ids, ranker.catalog.titles
    items: list[dict[str, Any]] = []
    for item, score in zip(ranking.items, ranking.scores, strict=True):
        item_id, title = (None, item) if isinstance(item, str) else (ids[item], titles[item])
        items.append({"rank": len(items) + 1, "item_id": item_id, "title": title, "score": score})
    fields.add_to(items, ranking.items, ranker.catalog)
    return {
        "request_id": request_id,
        "items": items,
        "artifact": {"name": parts.name, "version": parts.version, "recipe": parts.recipe},
        "timings_ms": timings_ms,
        "source": ranking.source,
        "ignored_items": ranking.ignored,
        "unknown_candidates": ranking.candidates.unknown,
        "repeated_candidates": ranking.candidates.repeated,
        "filtered_candidates": ranking.candidates.filtered,
        "degraded": [*ranking.degraded, *service.items.degraded()],
    }
