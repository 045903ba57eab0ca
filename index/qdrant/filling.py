"""Makes and fills the collection of an artifact: once, however many replicas load it at the same time.

A collection is named by its content, so that whatever has the right name and number of points is the right one. A
replica that dies while it fills one is followed by another, which goes on with the points that are missing.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from index.base import VectorIndex
from index.qdrant.payload import Payload
from index.qdrant.replicas import Replicas, create
from index.unavailable import SearchUnavailable

POINTS, NUMBERS = 1000, 400_000
"""Points, and numbers in their vectors, of one request: some 8 MB of JSON, and an engine takes 32."""
POLL_S = 0.25
STALLED_S = 30.0
"""Without a new point for so long, whoever fills a collection counts as gone."""
NOT_FOUND, FAULT = 404, 500
BUSY = (models.CollectionStatus.YELLOW,)


@dataclass(frozen=True)
class Held:
    """What a collection is a copy of.

    Attributes:
        name: of the collection.
        vectors: of all items, read from a mapped file.
        payload: their attributes.
    """

    name: str
    vectors: VectorIndex
    payload: Payload


@dataclass(frozen=True)
class Filler:
    """Fills collections for one replica.

    Attributes:
        client: of the engine.
        replicas: this replica among the others.
        indexes: whether the engine has indexes of fields; the embedded one has none.
    """

    client: QdrantClient
    replicas: Replicas
    indexes: bool = True

    def ensure(self, held: Held, deadline: float) -> None:
        """Return when the collection is there and whole: filled here, or by another replica.

        Raises:
            SearchUnavailable: it is not whole at ``deadline`` (a time of `time.monotonic`), or holds something else.
        """
        attempt, seen, since = 0, -2, time.monotonic()
        while (count := self.count(held.name)) != held.vectors.size:
            if count > held.vectors.size:
                raise SearchUnavailable(
                    f"collection {held.name} has {count} points, and {held.vectors.size} items are served from it; "
                    "something else writes into it: delete it"
                )
            if self.replicas.claim(held.name, attempt):
                self._fill(held, deadline)
                self.replicas.filled(held.name)
                continue
            now = time.monotonic()
            if count != seen:
                seen, since = count, now
            elif now - since > STALLED_S:
                attempt, since = attempt + 1, now
            refuse_after(deadline, held, count)
            time.sleep(POLL_S)

    def count(self, name: str) -> int:
        """Number of points of a collection; -1 where there is none that answers."""
        try:
            return self.client.count(name, exact=True).count
        except UnexpectedResponse as error:
            # One that another replica has just made answers with an error of the engine for a moment.
            if error.status_code == NOT_FOUND or (error.status_code or 0) >= FAULT:
                return -1
            raise
        except ValueError:  # of the embedded engine
            return -1

    def settle(self, name: str, deadline: float) -> None:
        """Wait while the engine builds its own index of a collection, until ``deadline`` at most: until then it
        answers too, by looking at every point."""
        while self.client.get_collection(name).status in BUSY and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def _fill(self, held: Held, deadline: float) -> None:
        create(self.client, held.name, held.vectors.dim)
        if self.indexes:  # before the points: the engine's graph takes them into account then
            for field, schema in held.payload.indexed.items():
                self.client.create_payload_index(held.name, field, schema, wait=True)
        together = max(1, min(POINTS, NUMBERS // held.vectors.dim))
        for first in range(0, held.vectors.size, together):
            refuse_after(deadline, held, first)
            rows = np.arange(first, min(first + together, held.vectors.size))
            there = {int(each.id) for each in self.client.retrieve(held.name, rows.tolist(), with_payload=False)}
            missing = np.array([row for row in rows.tolist() if row not in there], np.int64)
            if len(missing):
                points = models.Batch(
                    ids=missing.tolist(),
                    vectors=held.vectors.vectors(missing).tolist(),
                    payloads=held.payload.of(missing.tolist()),
                )
                self.client.upsert(held.name, points, wait=True)


def refuse_after(deadline: float, held: Held, count: int) -> None:
    """Raise `SearchUnavailable` where it is later than a time of `time.monotonic`."""
    if time.monotonic() > deadline:
        raise SearchUnavailable(
            f"collection {held.name} has {max(count, 0)} of {held.vectors.size} points, and the time to fill it is "
            "over; what is there stays, and the next load goes on with the rest"
        )
