"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import httpx

from anyo_client import answers, calls
from anyo_client.errors import AnyoError, NotReachedError
from anyo_client.retries import Retries
from anyo_client.routes import Routes

A = TypeVar("A")


class Client(Routes):
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"x-api-key": api_key}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, transport=transport)
        self._retries = retries or Retries()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def stream(
        self,
        history: calls.History = (),
        *,
        user_id: str | None = None,
        k: int = 10,
        artifact: str | None = None,
        fields: Sequence[str] = (),
        beams: int | None = None,
    ) -> Iterator[answers.Step | answers.WrittenRecommendation]:
        """The best text so far while it is being written, then the answer. Sent once: a stream is not begun anew."""
        call = calls.generate(history, user_id=user_id, k=k, artifact=artifact, fields=fields, beams=beams)
        request, events = call.request(self._http), calls.Events()
        request.url = request.url.copy_set_param("stream", "true")
        try:
            response = self._http.send(request, stream=True)
            try:
                if response.is_error:
                    response.read()
                    raise calls.refusal(response)
                for line in response.iter_lines():
                    if (event := events.line(line)) is not None:
                        yield event
            finally:
                response.close()
        except httpx.TransportError as error:
            raise calls.not_reached(error) from error

    def send(self, call: calls.Call[A], /) -> A:
        """Send a request that a function of `anyo_client.calls` made, with retries, and return its answer."""
        waited, done = 0.0, 0
        while True:
            done += 1
            try:
                return call.read(self._once(call))
            except (AnyoError, NotReachedError) as error:
                wait = self._retries.wait(error, done, waited)
                if wait is None:
                    raise
            waited += wait
            time.sleep(wait)

    def _once(self, call: calls.Call[A]) -> httpx.Response:
        try:
            return self._http.send(call.request(self._http))
        except httpx.TransportError as error:
            raise calls.not_reached(error) from error
