"""Cache that replicas share: user vectors and whole answers, behind each replica's own memory.

A key names everything the value depends on: the artifact's version, so that another artifact never meets a
value of this one, and a hash of the history exactly as the model reads it; for an answer also k, exclusions
and categories. Values carry a checksum over key and content. What fails the check, or does not fit the
artifact, counts as `garbage` and is otherwise a miss. Where the cache does not answer, the request goes on.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from service.artifacts.loading import LoadedArtifact
from service.caches.base import ByteCache, CacheDown
from service.caches.local import HASH_BYTES
from service.observability.metrics import Metrics
from service.settings import Settings

CHECKSUM_BYTES = 4
WRITES_WAITING = 64  # writes in the background; beyond them a value is not shared
VECTOR, RESULT = "shared_vector", "shared_result"

Result = tuple[list[int], list[float]]  # catalog rows and scores, best first


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """The keys of one request: of its user vector, and (where answers are shared) of its answer."""

    vector: bytes
    result: bytes | None


class CacheHit(NamedTuple):
    """Cached values of one query."""

    vector_D: NDArray[np.float32] | None = None
    result: Result | None = None


class SharedCache:
    """A ByteCache with the service's settings and metrics; `of` makes the part that one artifact uses."""

    def __init__(self, backend: ByteCache, settings: Settings, metrics: Metrics) -> None:
        self.vector_seconds = settings.cache_vector_seconds
        self.result_seconds = settings.cache_result_seconds
        self._backend = backend
        self._metrics = metrics
        self._writes: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Connect; raises StartError."""
        await self._backend.open()

    def of(self, parts: LoadedArtifact) -> ArtifactCache:
        """Return the cache as the artifact with these parts uses it."""
        return ArtifactCache(self, parts)

    async def get(self, keys: Mapping[str, bytes]) -> dict[str, bytes | None]:
        """Return values by the name of their cache; what does not answer is counted, and knows nothing."""
        try:
            values = await self._backend.get(list(keys.values()))
        except CacheDown:
            self._metrics.cache_up("read").set(0)
            for name in keys:
                self.count(name, "unavailable")
            return {}
        self._metrics.cache_up("read").set(1)
        return dict(zip(keys, values, strict=True))

    def put(self, values: Mapping[bytes, tuple[bytes, int]]) -> None:
        """Store values in the background; no request waits for it, and it may fail."""
        if values and len(self._writes) < WRITES_WAITING:
            task = asyncio.create_task(self._put(values))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    def count(self, name: str, result: str) -> None:
        """Count one look-up."""
        self._metrics.cache_requests(name, result).inc()

    async def close(self) -> None:
        """End the writes in the background and disconnect."""
        for task in self._writes:
            task.cancel()
        await asyncio.gather(*self._writes, return_exceptions=True)
        await self._backend.close()

    async def _put(self, values: Mapping[bytes, tuple[bytes, int]]) -> None:
        # Logged where it arose; the value is computed again.
        try:
            await self._backend.put(values)
        except CacheDown:
            self._metrics.cache_up("write").set(0)
        else:
            self._metrics.cache_up("write").set(1)


class ArtifactCache:
    """The shared cache of one artifact. Ids are hashed rather than rows: they mean the same on every replica."""

    def __init__(self, cache: SharedCache, parts: LoadedArtifact) -> None:
        self.shares_answers = cache.result_seconds > 0
        self._cache = cache
        self._catalog = parts.catalog
        self._dim = parts.index.dim
        # replicas of other precision have other vectors
        self._version = (parts.version + ("" if parts.precision == "fp32" else f" in {parts.precision}")).encode()

    def question(
        self,
        history: Sequence[int | str],
        k: int,
        exclude: NDArray[np.int64],
        wanted: str,
        *,
        whole: bool = True,
    ) -> CacheKeys:
        """Return the keys of a request: rows and free titles as the model reads them, excluded rows, the filter; not
        `whole`: of its user vector alone."""
        ids, read = self._catalog.item_ids, self._read(history)
        vector = self._key(b"vector", read)
        if not self.shares_answers or not whole:
            return CacheKeys(vector, None)
        rest = orjson.dumps([k, [ids[row] for row in exclude.tolist()], wanted])
        return CacheKeys(vector, self._key(b"result", read + b"\n" + rest))

    def vector_question(self, history: Sequence[int | str]) -> CacheKeys:
        """Return the key of the vector of a history alone."""
        return CacheKeys(self._key(b"vector", self._read(history)), None)

    def _read(self, history: Sequence[int | str]) -> bytes:
        ids = self._catalog.item_ids
        return orjson.dumps([[part] if isinstance(part, str) else ids[part] for part in history])

    async def look_up(self, question: CacheKeys, *, want_vector: bool) -> CacheHit:
        """Return what is known; asks once, for the vector only if it is wanted, and not at all for nothing."""
        keys = {VECTOR: question.vector} if want_vector else {}
        if question.result is not None:
            keys[RESULT] = question.result
        if not keys:
            return CacheHit()
        values = await self._cache.get(keys)
        known = CacheHit()
        if (sealed := self._unsealed(RESULT, question.result, values)) is not None:
            known = known._replace(result=self._result(sealed))
            self._cache.count(RESULT, "garbage" if known.result is None else "hit")
        if (sealed := self._unsealed(VECTOR, question.vector, values)) is not None:
            known = known._replace(vector_D=self._vector(sealed))
            self._cache.count(VECTOR, "garbage" if known.vector_D is None else "hit")
        return known

    def remember(
        self, question: CacheKeys, vector_D: NDArray[np.float32] | None, rows: Sequence[int], scores: Sequence[float]
    ) -> None:
        """Share a vector that was computed now (None: it was known) and an answer, in the background."""
        values = {}
        if vector_D is not None:
            content = np.ascontiguousarray(vector_D, "<f4").tobytes()
            values[question.vector] = _seal(question.vector, content), self._cache.vector_seconds
        if question.result is not None:
            content = orjson.dumps([[self._catalog.item_ids[row] for row in rows], list(scores)])
            values[question.result] = _seal(question.result, content), self._cache.result_seconds
        self._cache.put(values)

    def _key(self, kind: bytes, content: bytes) -> bytes:
        return b":".join((kind, self._version, blake2b(content, digest_size=HASH_BYTES).hexdigest().encode()))

    def _unsealed(self, name: str, key: bytes | None, values: Mapping[str, bytes | None]) -> bytes | None:
        if key is None or name not in values:
            return None
        value = values[name]
        if value is None:
            self._cache.count(name, "miss")
            return None
        content = value[CHECKSUM_BYTES:]
        if _seal(key, content) != value:
            self._cache.count(name, "garbage")
            return None
        return content

    def _vector(self, content: bytes) -> NDArray[np.float32] | None:
        if len(content) != 4 * self._dim:
            return None
        vector_D = np.frombuffer(content, "<f4").astype(np.float32)
        return vector_D if np.isfinite(vector_D).all() else None

    def _result(self, content: bytes) -> Result | None:
        try:
            ids, scores = orjson.loads(content)
            rows = [self._catalog.row(item) for item in ids]
            if len(rows) != len(scores) or not all(isinstance(score, float) for score in scores):
                return None
        except (ValueError, TypeError):
            return None
        return None if None in rows else ([row for row in rows if row is not None], scores)


def _seal(key: bytes, content: bytes) -> bytes:
    """Return the content behind a checksum over key and content: another key's value does not pass either."""
    return zlib.crc32(content, zlib.crc32(key)).to_bytes(CHECKSUM_BYTES, "big") + content
