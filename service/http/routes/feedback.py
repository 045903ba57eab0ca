"""`POST /feedback` and what it adds up to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.schemas.base import MAX_ID
from service.http.schemas.feedback import FeedbackAnswer, FeedbackRequest, FeedbackSummary

router = APIRouter(tags=["feedback"])


@router.post(
    "/feedback",
    responses=answers(FeedbackAnswer, 400, 404, 409, 413, 422),
    openapi_extra=takes(FeedbackRequest),
)
@opened_by(Right.API)
async def feedback(request: Request) -> Response:
    """Report that an item was taken after an answer; sent again, it is counted once."""
    body = await read_body(request, FeedbackRequest)
    joined = service_of(request).feedback.report(body.request_id, body.item_id)
    tally = joined.shown.tally
    return json_answer({
        "request_id": body.request_id,
        "item_id": body.item_id,
        "artifact": {"name": tally.name, "version": tally.version, "recipe": tally.recipe},
        "hit": joined.rank is not None,
        "rank": joined.rank,
        "duplicate": joined.duplicate,
    })  # fmt: skip


@router.get("/feedback/summary", responses=answers(FeedbackSummary, 422, 503))
@opened_by(Right.API)
async def summary(
    request: Request,
    baseline: Annotated[
        str | None, Query(max_length=MAX_ID, description="What the others are compared with; left out: the default.")
    ] = None,
) -> Response:
    """Say how often what was recommended was taken, by artifact, and how they differ, with 95 % intervals."""
    service = service_of(request)
    name = service.loaded().parts.name if baseline is None else baseline
    return json_answer(service.feedback.summary(name))
