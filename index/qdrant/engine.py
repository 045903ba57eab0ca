"""A connection to a Qdrant engine: bounded calls, errors in one form, and a thread that looks after collections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from index.base import RowArray
from index.qdrant.filling import NOT_FOUND, Filler, Held
from index.qdrant.replicas import RENEWED_S, Replicas
from index.unavailable import SearchUnavailable

COLLECTIONS = "anyo-index-"
"""How the names of artifacts' collections begin; others are left alone."""
SEARCH_PATH = "/points/query/batch"
MANAGE_S = 60.0
"""Longest wait for anything but a search, one after the other."""
AGAIN_S = 1.0
"""After a failure the engine is not asked for so long: each search would wait for it."""
BEAT_S, AWAY_BEAT_S = 5.0, 1.0
"""Between two looks at the collections, and while the engine is away."""
LEAST_VERSION = (1, 17)
"""Of the server: the first in which an upsert may insert only."""
REFUSED = frozenset({401, 403, NOT_FOUND, 429})


@dataclass(frozen=True)
class Address:
    """Where an engine is.

    Attributes:
        url: ``http://HOST:PORT``, ``https://…``; ``:memory:``, or a folder after ``file://``, for the embedded engine.
        api_key: sent with every request; never in a message.
        timeout_s: longest wait for a search.
    """

    url: str
    api_key: str = field(default="", repr=False)
    timeout_s: float = 1.0

    @property
    def embedded(self) -> bool:
        """Whether the engine runs in this process."""
        return not self.url.startswith("http")


@dataclass(frozen=True)
class Report:
    """What is told of searches: seconds of each that was answered, and why one failed."""

    answered: Callable[[float], None] = lambda seconds: None
    failed: Callable[[str], None] = lambda detail: None


class Engine:
    """The engine of one process; `close` after the last search.

    Args:
        address: where it is.
        report: is told of searches.
        client: another than the one that `address` gives, for several replicas in one process.
    """

    def __init__(self, address: Address, report: Report | None = None, client: QdrantClient | None = None) -> None:
        self.address, self._report = address, report or Report()
        self._client = client or connect(address)
        self._replicas = Replicas(self._client, f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}")
        self._filler = Filler(self._client, self._replicas, indexes=not address.embedded)
        self._held: dict[str, Held] = {}
        self._uses: Counter[str] = Counter()
        self._released: deque[str] = deque()
        self._books = threading.Lock()
        self._away: str | None = None
        self._not_before = self._renewed_at = 0.0
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._look_after, name="anyo-qdrant", daemon=True)
        self._thread.start()

    # -- collections ---------------------------------------------------------------------------------------------

    def open(self, held: Held, seconds: float) -> None:
        """Have a collection made and filled, where it is not, and look after it until it is released as often as it
        was opened. Blocks, for ``seconds`` at most.

        Raises:
            SearchUnavailable: the engine is away, too old, or takes too long.
        """
        with self._books:
            self._uses[held.name] += 1
        try:
            with self._asking():
                _refuse_old(self._client.info().version)
                self._replicas.prepare()
                self._replicas.use([held.name])  # before it is looked for: what is used is not removed
                self._filler.ensure(held, time.monotonic() + seconds)
                self._filler.settle(held.name, time.monotonic() + seconds / 2)
        except SearchUnavailable:
            with self._books:  # what there is of it stays until the lease ends: the next load goes on with it
                self._uses[held.name] -= 1
                if self._uses[held.name] <= 0 and held.name not in self._held:
                    del self._uses[held.name]
            raise
        with self._books:
            self._held[held.name] = held
        self.sweep()

    def release(self, name: str) -> None:
        """Look after a collection once less; the last time it is removed, unless another replica uses it. Returns at
        once."""
        self._released.append(name)  # no lock: what collects garbage may call this at any time
        self._wake.set()

    def sweep(self) -> None:
        """Remove the collections of artifacts that no replica uses; a failure leaves them for the next time."""
        with contextlib.suppress(SearchUnavailable), self._asking():
            with self._books:
                while self._released:
                    self._uses[self._released.popleft()] -= 1
                left = [name for name, count in self._uses.items() if count <= 0]
            for name in left:
                self._replicas.leave(name)
                with self._books:
                    if self._uses[name] > 0:
                        self._replicas.use([name])  # opened again meanwhile
                    else:
                        del self._uses[name]
                        self._held.pop(name, None)
            self._replicas.forget_gone()
            used = self._replicas.used()
            for each in self._client.get_collections().collections:
                if each.name.startswith(COLLECTIONS) and each.name not in used:
                    self._remove(each.name)

    def _remove(self, name: str) -> None:
        with self._books:  # nothing of this process opens it meanwhile
            if self._uses[name] <= 0:
                self._client.delete_collection(name)
                self._replicas.filled(name)

    # -- searching -----------------------------------------------------------------------------------------------

    @property
    def away(self) -> str | None:
        """Why the engine does not answer; None while it does."""
        return self._away

    def search(self, name: str, requests: Sequence[models.QueryRequest]) -> list[RowArray]:
        """The rows that each request finds, best first.

        Raises:
            SearchUnavailable: the engine does not answer in time, or its answer is none.
        """
        started = time.monotonic()
        try:
            if self._away is not None and started < self._not_before:
                raise SearchUnavailable(self._away)
            with self._asking():
                answers = self._client.query_batch_points(name, requests)
                found = [np.array([int(point.id) for point in answer.points], np.int64) for answer in answers]
        except SearchUnavailable as error:
            self._report.failed(error.detail)
            raise
        self._report.answered(time.monotonic() - started)
        return found

    def close(self) -> None:
        """End the thread and the connection. Collections stay: a replica that starts again finds them."""
        self._ended = True
        self._wake.set()
        self._thread.join(AWAY_BEAT_S)
        self._client.close()

    # -- steps ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn errors of the client into `SearchUnavailable`, and note whether the engine answers."""
        try:
            yield
        except SearchUnavailable:
            raise
        except Exception as error:  # of the client, of what it is made of, or an answer that is none
            brief, detail, gone = _reason(error)
            told = f"the index engine {brief}"
            if gone:
                self._not_before, self._away = time.monotonic() + AGAIN_S, told
            raise SearchUnavailable(told, f"{told}: {self.address.url}: {detail}") from error
        self._away = None

    def _look_after(self) -> None:
        while not self._ended:
            if self._wake.wait(BEAT_S if self._away is None else AWAY_BEAT_S):
                self._wake.clear()
                if not self._ended:
                    self.sweep()
            if not self._ended:
                self.look()

    def look(self) -> None:
        """See whether the engine answers, renew what this replica uses, and fill collections that were lost."""
        with contextlib.suppress(SearchUnavailable), self._asking():
            if not self._held and self._away is not None:
                self._client.get_collections()
            if time.monotonic() - self._renewed_at > RENEWED_S:
                self._replicas.prepare()
                self._replicas.use([name for name, count in list(self._uses.items()) if count > 0])
                self._renewed_at = time.monotonic()
            for held in list(self._held.values()):
                if self._filler.count(held.name) != held.vectors.size:
                    self._away = f"the index engine has lost {held.name}, which is filled again"
                    self._replicas.prepare()
                    self._filler.ensure(held, time.monotonic() + MANAGE_S)
                if self._away is not None:  # searches have less time than anything else
                    self._client.query_batch_points(held.name, [_probe(held)])


class OneAtATime:
    """An embedded engine, which takes one call at a time."""

    def __init__(self, client: QdrantClient) -> None:
        self._client, self._lock = client, threading.RLock()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def locked(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                return method(*arguments, **named)

        return locked


def connect(address: Address) -> QdrantClient:
    """A client of the engine at an address; an engine on another machine is not asked yet."""
    if address.url == ":memory:":
        embedded = QdrantClient(":memory:", force_disable_check_same_thread=True)
        return cast(QdrantClient, OneAtATime(embedded))
    if address.url.startswith("file://"):
        embedded = QdrantClient(path=address.url.removeprefix("file://"), force_disable_check_same_thread=True)
        return cast(QdrantClient, OneAtATime(embedded))
    headers = {"api-key": address.api_key} if address.api_key else None
    client = QdrantClient(url=address.url, headers=headers, timeout=int(MANAGE_S), check_compatibility=False)

    def bounded(request: Any, send: Callable[[Any], Any]) -> Any:
        """The client counts in whole seconds; a search has milliseconds."""
        if request.url.path.endswith(SEARCH_PATH):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), address.timeout_s)
        return send(request)

    client.http.client.add_middleware(bounded)
    return client


def _probe(held: Held) -> models.QueryRequest:
    return models.QueryRequest(query=held.vectors.vectors(np.zeros(1, np.int64))[0].tolist(), limit=1)


def _reason(error: Exception) -> tuple[str, str, bool]:
    """What an error says to everyone and to whoever runs the engine, and whether that is away, rather than one request
    wrong."""
    if isinstance(error, ResponseHandlingException):
        source = error.source
        return f"does not answer ({type(source).__name__})", str(source)[:200], True
    if isinstance(error, UnexpectedResponse):
        status = error.status_code or 0
        what = "has no such collection" if status == NOT_FOUND else f"answers with status {status}"
        return what, error.content[:200].decode(errors="replace"), status >= 500 or status in REFUSED
    return f"fails ({type(error).__name__})", str(error)[:200], True


def _refuse_old(version: str) -> None:
    found = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(found) == 2 and found < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise SearchUnavailable(f"the index engine is Qdrant {version}; {least} or later is needed")
