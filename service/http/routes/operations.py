"""What programs around the service ask: probes and metrics; and the page for people."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from service.errors import NotReady
from service.http.openapi import answers, shows
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, service_of
from service.http.schemas.operations import Status

router = APIRouter(tags=["operations"])

PAGE = Path(__file__).parent.parent / "page" / "index.html"


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


@router.get("/", responses=shows("text/html", "The page for people."), response_class=Response)
@opened_by(Right.OPEN)
async def page() -> Response:
    """Return the page that lets a person compose a history and see recommendations."""
    headers = {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(HTML, media_type="text/html; charset=utf-8", headers=headers)


def _page() -> tuple[bytes, str]:
    """Return the page and a policy under which only its own script and style can run, whatever a title holds."""
    html = PAGE.read_bytes()
    sources = {}
    for tag in ("script", "style"):
        found = re.search(rb"<%s>(.*?)</%s>" % (tag.encode(), tag.encode()), html, re.DOTALL)
        assert found is not None, f"{PAGE.name} has no <{tag}>"
        sources[tag] = base64.b64encode(hashlib.sha256(found.group(1)).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{sources['script']}'; style-src "
        f"'sha256-{sources['style']}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action "
        "'none'; frame-ancestors 'none'"
    )
    return html, policy


HTML, POLICY = _page()
