"""Server-sent events: the steps of an answer that is being written, then the answer, or an error in the one shape.

Until the first event everything is as for any request: a refusal has its own status. After it the status is 200, so
what goes wrong then comes as the event `error`. A client that leaves ends the writing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.engine.base import OnStep
from service.errors import AnyoError
from service.http.disconnect import CancelledWhenClientLeaves
from service.http.errors import ClientGone, error_body, status_of, unforeseen
from service.http.middleware import request_info

log = structlog.get_logger(__name__)

Write = Callable[[OnStep], Awaitable[dict[str, Any]]]


class EventStream(Response):
    """Sends `step` events while `answer` is being computed, then how it ended."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, answer: asyncio.Task[dict[str, Any]], steps: _Steps) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._request = request
        self._task = answer
        self._steps = steps

    @classmethod
    async def begin(cls, request: Request, write: Write) -> EventStream:
        """Start `write` and wait for its first step; raises what it raises before that, and ClientGone."""
        steps = _Steps()

        async def run() -> dict[str, Any]:
            try:
                return await write(steps.add)
            finally:
                steps.end()

        task = asyncio.create_task(run())
        try:
            with CancelledWhenClientLeaves(request):
                await steps.some.wait()
                if not steps.waiting:
                    await task  # raises its error, which still has a status of its own
        except BaseException:
            await _cancelled(task)
            raise
        return cls(request, task, steps)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; a client that leaves is no error here, and is noted as such."""
        try:
            with CancelledWhenClientLeaves(self._request):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for number, text in self._steps:
                    await _send(send, "step", orjson.dumps({"step": number, "text": text}))
                name, data = await self._last()
                await _send(send, name, data)
                await send({"type": "http.response.body", "body": b""})
        except ClientGone:
            pass
        finally:
            await _cancelled(self._task)

    async def _last(self) -> tuple[str, bytes]:
        info = request_info(self._request)
        try:
            return "answer", orjson.dumps(await self._task)
        except AnyoError as error:
            own = error
        except Exception as error:
            log.error("unhandled error", path=self._request.url.path, error=repr(error), exc_info=error)
            own = unforeseen()
        info.status = status_of(own)  # for the metrics: the client has seen a 200
        return "error", error_body(own.code, own.message, info.request_id, own.field)


class _Steps:
    """Steps on their way to the client. One that is slow to read gets the newest only: each replaces the one before."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        self.waiting: tuple[int, str] | None = None
        self._ended = False

    def add(self, number: int, text: str) -> None:
        self.waiting = number, text
        self.some.set()

    def end(self) -> None:
        self._ended = True
        self.some.set()

    def __aiter__(self) -> _Steps:
        return self

    async def __anext__(self) -> tuple[int, str]:
        await self.some.wait()
        step, self.waiting = self.waiting, None
        if not self._ended:
            self.some.clear()
        if step is None:
            raise StopAsyncIteration
        return step


async def _send(send: Send, name: str, data: bytes) -> None:
    await send({"type": "http.response.body", "body": f"event: {name}\ndata: ".encode() + data + b"\n\n",
                "more_body": True})  # fmt: skip


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task
