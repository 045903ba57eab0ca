"""Outermost middleware of every request: its id, its size limit, its times, its metrics, and the last net for errors.

Plain ASGI, because a middleware that wraps `receive` in its own task hides a client's disconnect from the
handlers.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.context import request_id_of_this_task
from service.errors import AnyoError, NotReady, TooLarge
from service.http.auth import AnswerHeaders
from service.http.callers import HEADERS, host_fault
from service.http.errors import ClientGone, error_body, error_headers, status_of, unforeseen
from service.http.path_ids import mark_encoded_slashes, note_route, readable
from service.observability.metrics import NO_RECIPE, Metrics
from service.observability.tracing import Span, Tracing

log = structlog.get_logger(__name__)

ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
UNKNOWN_PATH = "other"
SCOPE_KEY = "anyo.request"

# A request's id is a number behind a random name of this process: unique, and without a system call each
# time.
PROCESS_ID = uuid.uuid4().hex[:20]
_numbers = itertools.count(1)


def milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return times as answers show them."""
    return {name: round(1000 * each, 3) for name, each in seconds.items()}


@dataclass(slots=True)
class RequestInfo:
    """Facts about the request in progress; routes add the recipe and the seconds of their stages."""

    request_id: str
    started: float
    recipe: str = NO_RECIPE
    seconds: dict[str, float] = field(default_factory=dict)
    status: int = 0
    client_left: bool = False
    span: Span | None = None
    _shown_ms: dict[str, float] | None = None

    def timings_ms(self) -> dict[str, float]:
        """Return the stages so far and the total up to now, in milliseconds: what the answer's header says too."""
        self._shown_ms = milliseconds(self.seconds | {"total": time.monotonic() - self.started})
        return self._shown_ms

    def server_timing(self) -> str:
        """Return the value of the Server-Timing header: stages in ms, then the total."""
        return ", ".join([f"{name};dur={ms}" for name, ms in (self._shown_ms or self.timings_ms()).items()])


def request_info(request: Request) -> RequestInfo:
    """Return what the middleware knows of a request."""
    info: RequestInfo = request.scope[SCOPE_KEY]
    return info


class RequestMiddleware:
    """Stands around everything else, the framework too."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        max_body_bytes: int,
        headers: AnswerHeaders | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._headers = headers or AnswerHeaders()
        self._metrics = metrics
        self._tracing = tracing
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection; anything but HTTP passes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        headers = dict(scope["headers"])
        info = RequestInfo(_accepted_id(headers.get(b"x-request-id", b"")), time.monotonic())
        mark_encoded_slashes(scope)
        scope[SCOPE_KEY], scope[HEADERS] = info, headers
        request_id_of_this_task.set(info.request_id)
        if self._tracing is not None:
            info.span = self._tracing.begin(scope["method"], scope["path"], headers, info.request_id)
        framed_send = _framed(send, info, self._headers.of(headers.get(b"origin")))
        try:
            if (fault := host_fault(scope.get("http_version"), headers, scope["headers"])) is not None:
                note_route(scope)
                await _answer(framed_send, info, fault)
            elif _declared_length(headers) > self._max_body_bytes:
                # The rest of the request is not read; the connection cannot be used again.
                note_route(scope)
                await _answer(framed_send, info, self._too_large(), close=True)
            elif (allowed := self._headers.preflight(scope["method"], headers)) is not None:
                await framed_send({"type": "http.response.start", "status": 204, "headers": [*allowed]})
                await framed_send({"type": "http.response.body"})
            else:
                await self._app(scope, self._limited(receive), framed_send)
        except asyncio.CancelledError:
            # The client left just as its answer became ready: nobody is there to be cancelled for.
            if not info.client_left:
                if info.status:
                    raise
                await _answer(framed_send, info, _draining(), close=True)  # the server ends, and waits no longer
        except AnyoError as error:  # from a middleware; what a route raises has been answered
            await _answer(framed_send, info, error)
        except Exception as error:
            log.error("unhandled error", path=readable(scope["path"]), error=repr(error), exc_info=error)
            if not info.status:
                await _answer(framed_send, info, unforeseen(), close=True)
        finally:
            self._record(scope, info)

    def _limited(self, receive: Receive) -> Receive:
        """Count a body that came without a declared length."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._max_body_bytes} bytes (ANYO_MAX_BODY_BYTES)")

    def _record(self, scope: Scope, info: RequestInfo) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path_format", UNKNOWN_PATH)
        seconds = time.monotonic() - info.started
        status = ClientGone.status if info.client_left or not info.status else info.status
        metrics = self._metrics
        metrics.requests(endpoint, info.recipe, str(status)).inc()
        metrics.request_seconds(endpoint, info.recipe).observe(seconds)
        for stage, stage_seconds in info.seconds.items():
            metrics.stage_seconds(endpoint, stage).observe(stage_seconds)
        if info.client_left:
            metrics.cancelled.inc()
        elif status == 504:
            metrics.deadline_exceeded.inc()
        if info.span is not None:
            info.span.end(endpoint, status, info.recipe, info.seconds)
        log.debug("request", method=scope["method"], endpoint=endpoint, status=status, ms=round(1000 * seconds, 3))


def _without_body(send: Send) -> Send:
    """Answer HEAD as GET, without the body; HTTP's own rule, and what probes and balancers ask with."""

    async def headers_alone(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return headers_alone


def _framed(send: Send, info: RequestInfo, always: Sequence[tuple[bytes, bytes]]) -> Send:
    async def framed(message: Message) -> None:
        if message["type"] == "http.response.start":
            info.status = message["status"]
            own = message.get("headers", ())
            named = {name for name, _ in own}
            message["headers"] = [
                *own,
                *(header for header in always if header[0] not in named),
                (b"x-request-id", info.request_id.encode()),
                (b"server-timing", info.server_timing().encode()),
            ]
        await send(message)

    return framed


def _accepted_id(sent: bytes) -> str:
    """Return the client's own request id where it is harmless to print and log, else a new one."""
    given = sent.decode("latin-1")
    return given if ACCEPTED_ID.fullmatch(given) else f"{PROCESS_ID}{next(_numbers):012x}"


def _declared_length(headers: dict[bytes, bytes]) -> int:
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() else 0


def _draining() -> NotReady:
    return NotReady("the service is shutting down", code="draining")


async def _answer(send: Send, info: RequestInfo, error: AnyoError, *, close: bool = False) -> None:
    body = error_body(error.code, error.message, info.request_id, error.field)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += error_headers(error)
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body})
