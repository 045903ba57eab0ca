"""`POST /recommend/generative`, whole or as a stream, and `POST /compare`."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.engine.base import OnStep
from service.http.disconnect import CancelledWhenClientLeaves
from service.http.middleware import RequestInfo, milliseconds, request_info
from service.http.openapi import answers, streams, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.routes.item_fields import ItemFields, item_fields
from service.http.routes.recommend import answer_of
from service.http.schemas.generative import CompareAnswer, CompareRequest, GenerativeAnswer, GenerativeRequest
from service.http.sse import EventStream
from service.recommend.base import Recommendation
from service.recommend.generative import GenerativeRecommendation, GenerativeRecommender
from service.recommend.requests import GenerativeQuery
from service.service import Service

router = APIRouter(tags=["generative"])

STATUSES = (400, 404, 409, 413, 422, 429, 503, 504)
StreamQuery = Annotated[
    bool, Query(description="Send the best text so far as server-sent events: `step`, …, then `answer` or `error`.")
]


@router.post(
    "/recommend/generative",
    responses=streams(answers(GenerativeAnswer, *STATUSES)),
    openapi_extra=takes(GenerativeRequest),
)
@opened_by(Right.API)
async def generative(request: Request, stream: StreamQuery = False) -> Response:
    """Write recommendations for a history, a stored user, or both, and ground them to items of the catalog."""
    service, info = service_of(request), request_info(request)
    body = await read_body(request, GenerativeRequest)
    query = body.query()
    recommender = service.generative(body.artifact, body.recipe)
    info.recipe = recommender.parts.recipe
    fields = item_fields(body.fields, recommender.catalog)
    deadline = info.started + service.settings.generative_deadline_ms / 1000

    def write(on_step: OnStep | None = None) -> Awaitable[dict[str, Any]]:
        return _write(service, info, recommender, query, fields, deadline, on_step)

    if stream:
        return await EventStream.begin(request, write)
    with CancelledWhenClientLeaves(request):
        return json_answer(await write())


@router.post("/compare", responses=answers(CompareAnswer, *STATUSES), openapi_extra=takes(CompareRequest))
@opened_by(Right.API)
async def compare(request: Request) -> Response:
    """Answer one history both ways, one after the other and without caches, with both times."""
    service, info = service_of(request), request_info(request)
    body = await read_body(request, CompareRequest)
    query = body.query()
    dense = service.recommender(body.artifact)
    generative = service.generative(body.generative_artifact, body.recipe, "generative_artifact")
    info.recipe = generative.parts.recipe
    deadline = info.started + service.settings.generative_deadline_ms / 1000
    generative.settings_of(query)  # what is not allowed is refused before anything is computed
    of_dense, of_written = (item_fields(body.fields, each.catalog) for each in (dense, generative))
    with CancelledWhenClientLeaves(request):
        started = time.monotonic()
        found = await dense.recommend(query, deadline, cached=False)
        between = time.monotonic()
        written = await generative.recommend(query, deadline)
        ended = time.monotonic()
    info.seconds = {"dense": between - started, "generative": ended - between}
    found, written = dense.shown(found), generative.shown(written)
    dense_ids, written_ids = ({each.catalog.item_ids[row] for row in answer.rows}
                              for each, answer in ((dense, found), (generative, written)))  # fmt: skip
    longest = max(len(dense_ids), len(written_ids))
    computed = found.source != "popular" and written.source != "popular"
    return json_answer({
        "request_id": info.request_id,
        "dense": answer_of(service, found, dense, info.request_id, _timings(found, between - started), of_dense),
        "generative": _answer(
            service, written, generative, info.request_id, _timings(written, ended - between), of_written
        ),
        "ratio": round((ended - between) / max(between - started, 1e-6), 2) if computed else None,
        "overlap": round(len(dense_ids & written_ids) / longest, 4) if longest else 1.0,
    })  # fmt: skip


async def _write(
    service: Service,
    info: RequestInfo,
    recommender: GenerativeRecommender,
    query: GenerativeQuery,
    fields: ItemFields,
    deadline: float,
    on_step: OnStep | None,
) -> dict[str, Any]:
    """Return the body of the answer, which is counted and remembered then."""
    answer = recommender.shown(await recommender.recommend(query, deadline, on_step))
    info.seconds = answer.seconds
    service.metrics.answers(answer.source).inc()
    items = [recommender.catalog.item_ids[row] for row in answer.rows]
    service.feedback.remember(info.request_id, recommender.parts, items, answer.source)
    return _answer(service, answer, recommender, info.request_id, info.timings_ms(), fields)


def _timings(answer: Recommendation, total: float) -> dict[str, float]:
    return milliseconds(answer.seconds | {"total": total})


def _answer(
    service: Service,
    answer: GenerativeRecommendation,
    recommender: GenerativeRecommender,
    request_id: str,
    timings_ms: dict[str, float],
    fields: ItemFields,
) -> dict[str, Any]:
    written, catalog = answer.written, recommender.catalog
    return {
        **answer_of(service, answer, recommender, request_id, timings_ms, fields),
        "generated": [
            {
                "text": text.text,
                "code": None if text.code is None else list(text.code),
                "item_id": None if text.row is None or not catalog.is_open(text.row) else catalog.item_ids[text.row],
                "distance": text.distance,
                "valid": text.valid,
            }
            for text in (() if written is None else written.generated)
        ],
        "tokens": {"prompt": written.prompt_tokens, "new": written.new_tokens} if written else {"prompt": 0, "new": 0},
        "beams": answer.beams,
        "filled": written.filled if written else 0,
    }
