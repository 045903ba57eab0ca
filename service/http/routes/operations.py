"""Endpoints for operations: probes, metrics, the description of the API."""

from __future__ import annotations

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.errors import NotReady
from service.http.openapi import answers, shows
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, service_of
from service.http.schemas.operations import Status

router = APIRouter(tags=["operations"])


@router.get("/livez", responses=answers(Status, 503, gated=False))
@opened_by(Right.PROBE)
async def livez(request: Request) -> Response:
    """Answer 503 only where a restart is what helps; loading is no such case."""
    if (reason := service_of(request).broken()) is not None:
        raise NotReady(reason, code="broken")
    return json_answer({"status": "alive"})


@router.get("/readyz", responses=answers(Status, 503, gated=False))
@opened_by(Right.PROBE)
async def readyz(request: Request) -> Response:
    """Answer 200 while requests may be sent here: artifacts loaded, golden answers right, model warm, not draining."""
    if (reason := service_of(request).not_ready()) is not None:
        raise NotReady(reason, retry_after=1)
    return json_answer({"status": "ready"})


@router.get("/metrics", responses=shows("text/plain", "Metrics in Prometheus' text format."), response_class=Response)
@opened_by(Right.OPEN)
async def metrics(request: Request) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(await service_of(request).metrics_page(), media_type=CONTENT_TYPE_LATEST)


@router.get("/openapi.json", include_in_schema=False)
@opened_by(Right.OPEN)
async def description(request: Request) -> Response:
    """Return the description of the API for programs."""
    return json_answer(request.app.openapi())
