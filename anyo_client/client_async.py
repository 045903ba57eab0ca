"""The client for asyncio; a twin of `anyo_client.client`, method by method."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import BaseModel

from anyo_client import answers, calls
from anyo_client.errors import AnyoError, NotReachedError
from anyo_client.retries import Retries

A = TypeVar("A", bound=BaseModel)


class AsyncClient:
    """Asks one service. Every method raises AnyoError (refused) and NotReachedError (no answer), after its retries.

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

    async def recommend(
        self,
        history: calls.History = (),
        *,
        user_id: str | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        exclude: Sequence[str] = (),
        categories: Sequence[str] = (),
        artifact: str | None = None,
        explain: bool = False,
    ) -> answers.Recommendation:
        """The k best items for a history, a stored user, or both, by lookup."""
        return await self._send(
            calls.recommend(
                history, user_id=user_id, k=k, exclude_seen=exclude_seen, exclude=list(exclude),
                categories=list(categories), artifact=artifact, explain=explain,
            )
        )  # fmt: skip

    async def generate(
        self,
        history: calls.History = (),
        *,
        user_id: str | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        exclude: Sequence[str] = (),
        categories: Sequence[str] = (),
        artifact: str | None = None,
        beams: int | None = None,
        max_new_tokens: int | None = None,
    ) -> answers.WrittenRecommendation:
        """The same, written by a generative artifact."""
        return await self._send(
            calls.generate(
                history, user_id=user_id, k=k, exclude_seen=exclude_seen, exclude=list(exclude),
                categories=list(categories), artifact=artifact, beams=beams, max_new_tokens=max_new_tokens,
            )
        )  # fmt: skip

    async def rank(
        self,
        history: calls.History,
        candidates: calls.History,
        *,
        user_id: str | None = None,
        artifact: str | None = None,
    ) -> answers.Ranking:
        """Given candidates in the order of a user's preference."""
        return await self._send(calls.rank(history, candidates, user_id=user_id, artifact=artifact))

    async def similar(self, item_id: str, *, k: int = 10, artifact: str | None = None) -> answers.Similar:
        """The items whose vectors are closest to that of an item."""
        return await self._send(calls.similar(item_id, k, artifact))

    async def item(self, item_id: str, *, artifact: str | None = None) -> answers.Item:
        """One item of the catalog."""
        return await self._send(calls.item(item_id, artifact))

    async def search(
        self, words: str = "", *, limit: int = 20, offset: int = 0, artifact: str | None = None
    ) -> answers.SearchPage:
        """Items whose title holds every word."""
        return await self._send(calls.search(words, limit, offset, artifact))

    async def append(self, user_id: str, items: Sequence[str]) -> answers.Appended:
        """Store that a user took items, in this order, now; a retry does not store them twice."""
        return await self._send(calls.append(user_id, items))

    async def user(self, user_id: str) -> answers.User:
        """A user's stored history."""
        return await self._send(calls.user(user_id))

    async def taken(self, request_id: str, item_id: str) -> answers.Feedback:
        """Report that an item was taken after the answer with this `request_id`."""
        return await self._send(calls.taken(request_id, item_id))

    async def artifacts(self) -> list[answers.Artifact]:
        """All loaded artifacts, the default one first."""
        return (await self._send(calls.artifacts())).items

    async def artifact(self, name: str) -> answers.Artifact:
        """One of them, with its quality and its training run."""
        return await self._send(calls.artifact(name))

    async def stream(
        self,
        history: calls.History = (),
        *,
        user_id: str | None = None,
        k: int = 10,
        artifact: str | None = None,
        beams: int | None = None,
    ) -> AsyncIterator[answers.Step | answers.WrittenRecommendation]:
        """The best text so far while it is being written, then the answer. Sent once: a stream is not begun anew."""
        call = calls.generate(history, user_id=user_id, k=k, artifact=artifact, beams=beams)
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

    async def _send(self, call: calls.Call[A]) -> A:
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
