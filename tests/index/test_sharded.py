"""Shards that are searched apart and merged answer as one index over all rows does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import FlatIndex, SearchError
from index.sharded import IndexShard, ShardAnswer, ShardCall, ShardedIndex


def sharded(whole: FlatIndex, count: int) -> ShardedIndex:
    shards = [IndexShard.of(whole, number, count) for number in range(count)]

    def scatter(calls: Mapping[int, ShardCall]) -> Mapping[int, ShardAnswer]:
        return {number: shards[number].answer(call) for number, call in reversed(list(calls.items()))}

    return ShardedIndex(whole.size, whole.dim, count, scatter)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 60), count=st.integers(1, 5), k=st.integers(1, 70))
def test_the_merge_is_exact_with_ties_exclusion_and_filters(seed: int, size: int, count: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    count = min(count, size)
    # Small integers: every product is exact, whatever the order of summation, and ties are plentiful.
    whole = FlatIndex.build(rng.integers(-2, 3, (size, 3)).astype(np.float32))
    queries_BD = rng.integers(-2, 3, (3, 3)).astype(np.float32)
    exclude = [rng.integers(0, size, rng.integers(0, 90)) for _ in queries_BD] if seed % 2 else None
    allowed = rng.permutation(size)[: rng.integers(0, size + 1)] if seed % 3 else None
    expected = whole.search(queries_BD, k, exclude, allowed)
    found = sharded(whole, count).search(queries_BD, k, exclude, allowed)
    assert found[1].tolist() == expected[1].tolist()
    assert found[0].tolist() == expected[0].tolist()


def test_vectors_come_back_in_the_order_asked_for() -> None:
    vectors_ND = np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32)
    index = sharded(FlatIndex.build(vectors_ND), 3)
    rows = np.array([10, 0, 7, 7, 2])
    assert (index.vectors(rows) == vectors_ND[rows]).all() and (index.vectors() == vectors_ND).all()
    with pytest.raises(SearchError, match="row 11"):
        index.vectors(np.array([11]))


def test_a_shard_without_rows_is_refused() -> None:
    whole = FlatIndex.build(np.eye(2, dtype=np.float32))
    with pytest.raises(SearchError, match="shard 2 of 3"):
        IndexShard.of(whole, 2, 3)
    with pytest.raises(SearchError, match="among 3 shards"):
        ShardedIndex(2, 2, 3, lambda calls: {})
