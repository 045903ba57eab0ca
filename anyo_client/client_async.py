"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TypeVar

import httpx

from anyo_client import answers, calls
from anyo_client.errors import AnyoError, NotReachedError
from anyo_client.retries import Retries
from anyo_client.routes import Routes

A = TypeVar("A")


class AsyncClient(Routes):
    """Asks one service: `stream`, and the methods of `Routes`.

    Every method raises AnyoError (refused) and NotReachedError (no answer), after its retries.

    Args:
        url: of the service, e.g. ``http://127.0.0.1:8000``.
        api_key: sent with every request, where the service asks for one.
        timeout_s: of one try.
        retries: when a request is sent again.
        transport: instead of a network, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"x-api-key": api_key}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, transport=transport)
        self._retries = retries or Retries()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def stream(
        self,
        history: calls.History = (),
        *,
        user_id: str | None = None,
        k: int = 10,
        artifact: str | None = None,
        fields: Sequence[str] = (),
        beams: int | None = None,
    ) -> AsyncIterator[answers.Step | answers.WrittenRecommendation]:
        """The best text so far while it is being written, then the answer. Sent once: a stream is not begun anew."""
        call = calls.generate(history, user_id=user_id, k=k, artifact=artifact, fields=fields, beams=beams)
        request, events = call.request(self._http), calls.Events()
        request.url = request.url.copy_set_param("stream", "true")
        try:
            response = await self._http.send(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise calls.refusal(response)
                async for line in response.aiter_lines():
                    if (event := events.line(line)) is not None:
                        yield event
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise calls.not_reached(error) from error

    async def send(self, call: calls.Call[A], /) -> A:
        """Send a request that a function of `anyo_client.calls` made, with retries, and return its answer."""
        waited, done = 0.0, 0
        while True:
            done += 1
            try:
                return call.read(await self._once(call))
            except (AnyoError, NotReachedError) as error:
                wait = self._retries.wait(error, done, waited)
                if wait is None:
                    raise
            waited += wait
            await asyncio.sleep(wait)

    async def _once(self, call: calls.Call[A]) -> httpx.Response:
        try:
            return await self._http.send(call.request(self._http))
        except httpx.TransportError as error:
            raise calls.not_reached(error) from error
