"""Caches in memory: they forget what was used longest ago, and what they hand out stays what it was."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.caches.local import ArrayCache, VectorCache, history_key

HISTORIES = st.lists(st.one_of(st.integers(0, 12), st.sampled_from(["1", "12", '"', "1,2", "é", ""])), max_size=5)


@given(st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60))
def test_vectors_come_back_as_a_dictionary_would_keep_them(capacity: int, steps: list[tuple[bool, int]]) -> None:
    cache, kept, handed_out = VectorCache(capacity, 3), OrderedDict[int, int](), list[tuple[np.ndarray, int]]()
    for number, (put, name) in enumerate(steps):
        key = history_key([name])
        if put and capacity:
            kept[name] = number
            kept.move_to_end(name)
            if len(kept) > capacity:
                kept.popitem(last=False)
        if put:
            cache.put(key, np.full(3, number, np.float32))
        else:
            found = cache.get(key)
            assert (found is None) == (name not in kept)
            if found is not None:
                kept.move_to_end(name)
                handed_out.append((found, kept[name]))
        assert len(cache) == len(kept)
    for vector_D, number in handed_out:
        assert vector_D.tolist() == [number] * 3


@given(st.integers(0, 4), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=40))
def test_arrays_keep_to_their_memory(capacity: int, puts: list[tuple[int, int]]) -> None:
    cache, most = ArrayCache(capacity, 80), 80
    for key, length in puts:
        cache.put(key, np.zeros(length, np.int64))
        held = [found for name in range(7) if (found := cache._entries.get(name)) is not None]
        assert len(cache) == len(held) <= capacity
        assert cache.bytes == sum(array.nbytes for array in held)
        assert cache.bytes <= most or len(held) == 1
        assert not capacity or len(cache.get(key)) == length


@given(HISTORIES, HISTORIES)
def test_only_the_same_history_has_the_same_key(one: list[int | str], other: list[int | str]) -> None:
    assert (history_key(one) == history_key(other)) == (one == other)
