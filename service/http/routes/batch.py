"""`POST /recommend/batch`: many requests in one call, with the answers that each would get alone."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import AnyoError
from service.http.disconnect import CancelledWhenClientLeaves
from service.http.errors import error_of
from service.http.middleware import request_info
from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.routes.recommend import answered, compute
from service.http.schemas.batch import BatchAnswer, BatchRequest

router = APIRouter(tags=["recommend"])


@router.post(
    "/recommend/batch",
    responses=answers(BatchAnswer, 400, 413, 422, 503),
    openapi_extra=takes(BatchRequest),
)
@opened_by(Right.API)
async def batch(request: Request) -> Response:
    """Recommend items for many users; each request has an answer or an error of its own."""
    service, info = service_of(request), request_info(request)
    body = await read_body(request, BatchRequest)
    service.loaded()  # before anything is loaded the batch is refused as a whole
    deadline = info.started + service.settings.deadline_ms / 1000
    ids = [f"{info.request_id}.{number}" for number in range(len(body.requests))]
    entries = [partial(compute, service, each, name, deadline) for each, name in zip(body.requests, ids, strict=True)]
    with CancelledWhenClientLeaves(request):
        results = await service.batches.run(entries, deadline)
    shown: list[dict[str, Any]] = [
        {"error": error_of(result.code, result.message, name, result.field)}
        if isinstance(result, AnyoError)
        else answered(service, result)
        for result, name in zip(results, ids, strict=True)
    ]
    return json_answer({"request_id": info.request_id, "results": shown, "timings_ms": info.timings_ms()})
