"""The methods that the blocking client and the one for asyncio share."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from anyo_client import calls

A = TypeVar("A")
P = ParamSpec("P")


class Sends(Protocol):
    """A client that returns answers."""

    def send(self, call: calls.Call[A], /) -> A:
        """Send a request and return its answer."""


class SendsLater(Protocol):
    """A client whose answers are awaited."""

    def send(self, call: calls.Call[A], /) -> Coroutine[Any, Any, A]:
        """Send a request; the answer is awaited."""


class Route(Generic[P, A]):
    """A method of a client that makes a call and sends it; editors and mypy see the arguments of the function."""

    def __init__(self, make: Callable[P, calls.Call[A]]) -> None:
        self._make = make

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, calls.Call[A]]: ...
    @overload
    def __get__(self, client: Sends, owner: type) -> Callable[P, A]: ...
    @overload
    def __get__(self, client: SendsLater, owner: type) -> Callable[P, Coroutine[Any, Any, A]]: ...

    def __get__(self, client: Any, owner: type) -> Callable[P, Any]:
        """The method of a client; of the class, the function that makes the call."""
        if client is None:
            return self._make

        @wraps(self._make)
        def sent(*args: P.args, **given: P.kwargs) -> Any:
            return client.send(self._make(*args, **given))

        return sent


class Routes:
    """The methods that both clients have."""

    recommend = Route(calls.recommend)
    generate = Route(calls.generate)
    rank = Route(calls.rank)
    similar = Route(calls.similar)
    popular = Route(calls.popular)
    item = Route(calls.item)
    search = Route(calls.search)
    append = Route(calls.append)
    user = Route(calls.user)
    taken = Route(calls.taken)
    artifacts = Route(calls.artifacts)
    artifact = Route(calls.artifact)
