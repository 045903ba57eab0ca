"""Which replicas use which collections, and which of them fills one: points of a collection that all of them share.

Qdrant has no lock and no lease. A point that is only ever inserted stands for a lock: the first that inserts it has it.
A point with a time stands for a lease. The clocks of the replicas may differ by less than `EXPIRES_S`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

SHARED = "anyo-replicas"
EXPIRES_S = 600.0
"""After so long without a renewal a replica counts as gone."""
RENEWED_S = 60.0
PAGE = 1000
CONFLICT = 409


class Replicas:
    """The replicas of all services that share an engine, as one of them sees and tells it.

    Args:
        client: of the engine.
        own: a name of this replica that no other has.
    """

    def __init__(self, client: QdrantClient, own: str) -> None:
        self._client, self._own = client, own

    def prepare(self) -> None:
        """Make the shared collection where it is not there."""
        if not self._client.collection_exists(SHARED):
            create(self._client, SHARED, 1)

    def use(self, collections: Iterable[str]) -> None:
        """Say that this replica uses these collections now."""
        now = time.time()
        points = [self._point("use", name, self._own, {"seen": now}) for name in collections]
        if points:
            self._client.upsert(SHARED, points, wait=True)

    def leave(self, collection: str) -> None:
        """Say that this replica does not use a collection any more."""
        self._client.delete(SHARED, models.PointIdsList(points=[_id("use", collection, self._own)]), wait=True)

    def claim(self, collection: str, attempt: int) -> bool:
        """Whether it is this replica that fills a collection in this attempt: of all that ask, one is told so."""
        point = self._point("fill", collection, str(attempt), {})
        self._client.upsert(SHARED, [point], wait=True, update_mode=models.UpdateMode.INSERT_ONLY)
        found = self._client.retrieve(SHARED, [point.id], with_payload=True)
        return bool(found) and (found[0].payload or {}).get("replica") == self._own

    def filled(self, collection: str) -> None:
        """Forget who filled a collection: it is whole, or gone."""
        self._client.delete(SHARED, models.FilterSelector(filter=_has(what="fill", collection=collection)), wait=True)

    def used(self) -> set[str]:
        """Collections that some replica has said to use within `EXPIRES_S`."""
        least, found, page = time.time() - EXPIRES_S, set(), None
        while True:
            points, page = self._client.scroll(SHARED, _has(what="use"), limit=PAGE, offset=page, with_payload=True)
            payloads = [point.payload or {} for point in points]
            found |= {str(each["collection"]) for each in payloads if float(each["seen"]) > least}
            if page is None:
                return found

    def forget_gone(self) -> None:
        """Remove what replicas have said that are gone."""
        old = models.FieldCondition(key="seen", range=models.Range(lte=time.time() - EXPIRES_S))
        gone = models.Filter(must=[_has(what="use"), old])
        self._client.delete(SHARED, models.FilterSelector(filter=gone), wait=True)

    def _point(self, what: str, collection: str, key: str, more: dict[str, Any]) -> models.PointStruct:
        payload = {"what": what, "collection": collection, "replica": self._own, **more}
        return models.PointStruct(id=_id(what, collection, key), vector=[1.0], payload=payload)


def create(client: QdrantClient, name: str, dim: int) -> None:
    """Make a collection of vectors of this width; nothing where another replica just made it. Everything else is as
    the engine is configured: copies, memory, quantization."""
    try:
        client.create_collection(name, models.VectorParams(size=dim, distance=models.Distance.DOT))
    except UnexpectedResponse as error:
        if error.status_code != CONFLICT:
            raise
    except ValueError:  # of the embedded engine
        if not client.collection_exists(name):
            raise


def _id(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(parts)))


def _has(**values: str) -> models.Filter:
    return models.Filter(
        must=[models.FieldCondition(key=key, match=models.MatchValue(value=value)) for key, value in values.items()]
    )
