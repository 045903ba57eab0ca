"""Small caches that forget what was used longest ago. One thread at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from typing import Generic, Protocol, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

V = TypeVar("V")


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


A = TypeVar("A", bound=_Sized)

HASH_BYTES = 20
"""Of what is looked up by a hash: two contents with one hash are out of the question."""


class LruCache(Generic[V]):
    """At most `capacity` entries; with 0 it keeps nothing and always misses."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: OrderedDict[Hashable, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> V | None:
        """Return the value of `key`, or None; a hit makes it the most recently used."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: Hashable, value: V) -> None:
        """Keep `value`, at the cost of the entry that was used longest ago."""
        if self.capacity == 0:
            return
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)


class ArrayCache(LruCache[A]):
    """At most `capacity` arrays and, but for the newest one, `most_bytes` together."""

    def __init__(self, capacity: int, most_bytes: int) -> None:
        super().__init__(capacity)
        self._most = most_bytes
        self.bytes = 0

    def put(self, key: Hashable, value: A) -> None:
        """Keep `value`, at the cost of the entries that were used longest ago."""
        if self.capacity == 0:
            return
        self.bytes += value.nbytes - self._size(key)
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self.capacity or (self.bytes > self._most and len(self._entries) > 1):
            self.bytes -= self._entries.popitem(last=False)[1].nbytes

    def _size(self, key: Hashable) -> int:
        before = self._entries.get(key)
        return 0 if before is None else before.nbytes


def history_key(parts: Sequence[int | str]) -> bytes:
    """Return a short name of a history, rows and free titles, exactly as the model reads it."""
    return blake2b(orjson.dumps(parts), digest_size=HASH_BYTES).digest()


class VectorCache:
    """At most `capacity` vectors of `dim` floats in one table that is there from the start.

    Vectors in the heap, one by one among a forward pass's short-lived arrays, hold several times their size of it, and
    a service grew until its cache was full.
    """

    def __init__(self, capacity: int, dim: int) -> None:
        self.capacity = capacity
        # Written once, so that the memory is taken now and not little by little.
        self._table_CD = np.full((capacity, dim), np.nan, np.float32)
        self._places: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Return a copy of the vector [D] of `key`, or None; a hit makes it the most recently used."""
        place = self._places.get(key)
        if place is None:
            return None
        self._places.move_to_end(key)
        vector_D: NDArray[np.float32] = self._table_CD[place].copy()
        return vector_D

    def put(self, key: bytes, vector_D: NDArray[np.float32]) -> None:
        """Keep a vector, at the cost of the one that was used longest ago."""
        if self.capacity == 0:
            return
        place = self._places.get(key)
        if place is None:
            full = len(self._places) == self.capacity
            place = self._places.popitem(last=False)[1] if full else len(self._places)
        self._table_CD[place] = vector_D
        self._places[key] = place
        self._places.move_to_end(key)
