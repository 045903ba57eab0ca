"""Cancels the work in progress for a client as soon as its connection closes.

uvicorn's connections (`service.http.uvicorn_adapter.LimitedHttp`) call back. ASGI itself only offers to wait for the
message that says so, which takes a task of its own for every request: more than reading the request takes. Behind
other servers it is waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from starlette.requests import Request

from service.http.errors import ClientGone
from service.http.middleware import RequestInfo, request_info

SCOPE_KEY = "anyo.departures"


class Disconnects:
    """Callbacks for the disconnect of one connection's client."""

    def __init__(self) -> None:
        self.gone = False
        self._calls: list[Callable[[], None]] = []

    def add(self, call: Callable[[], None]) -> None:
        """Add a callback; it is called at once if the client has disconnected already."""
        self._calls.append(call)
        if self.gone:
            call()

    def remove(self, call: Callable[[], None]) -> None:
        """Tell it no more."""
        self._calls.remove(call)

    def leave(self) -> None:
        """The client has left."""
        self.gone = True
        for call in tuple(self._calls):
            call()


class CancelledWhenClientLeaves:
    """Cancel the body of this `with` block when the client closes its connection; raises ClientGone then.

    For use after the request's body has been read: the next message can then only be the disconnect.
    """

    __slots__ = ("_departures", "_info", "_request", "_task", "_watcher")

    def __init__(self, request: Request) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._request, self._task = request, task
        self._info: RequestInfo = request_info(request)
        self._departures: Disconnects | None = request.scope.get(SCOPE_KEY)
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        if self._departures is None:
            self._watcher = asyncio.create_task(self._watch())
        else:
            self._departures.add(self._left)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        elif self._departures is not None:
            self._departures.remove(self._left)
        if isinstance(error, asyncio.CancelledError) and self._info.client_left and self._task.uncancel() == 0:
            raise ClientGone("the client closed its connection") from None

    def _left(self) -> None:
        self._info.client_left = True
        self._task.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self._left()
