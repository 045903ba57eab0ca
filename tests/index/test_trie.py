"""index/trie.py: what can be walked is the catalog, no more and no less, also after items came and went."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.trie import TokenTrie, TrieError

END = 0
SEQUENCE = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


def walked(trie: TokenTrie) -> dict[tuple[int, ...], list[int]]:
    return {tokens: sorted(rows) for tokens, rows in trie.sequences()}


def grouped(items: dict[int, tuple[int, ...]]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, sequence in sorted(items.items()):
        groups.setdefault(sequence, []).append(row)
    return groups


def test_prefixes_and_twins() -> None:
    trie = TokenTrie.build([(1, 2), (1, 2, 3), (4,), (4,)], END)
    assert walked(trie) == {(1, 2): [0], (1, 2, 3): [1], (4,): [2, 3]}
    assert trie.find((1,)) == [] and trie.find((1, 2)) == [0] and trie.find((4,)) == [2, 3]
    assert len(trie) == 4


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 9), SEQUENCE, st.booleans()), max_size=40))
def test_any_order_of_adding_and_removing_leaves_exactly_what_is_in(steps: list) -> None:
    trie, model = TokenTrie(END), {}
    for row, sequence, remove in steps:
        if row in model and remove:
            trie.remove(row, model.pop(row))
        elif row not in model:
            trie.add(row, sequence)
            model[row] = sequence
        assert walked(trie) == grouped(model)
        assert all(row in trie.find(sequence) for row, sequence in model.items())
    arrays = trie.arrays()
    assert (arrays.counts >= 0).all() and arrays.targets.max(initial=0) < len(arrays.starts)


def test_an_item_touches_its_own_path_only() -> None:
    rng = np.random.default_rng(0)
    sequences = [tuple(rng.integers(1, 50, size=5).tolist()) for _ in range(2000)]
    trie = TokenTrie.build(sequences, END)
    before, kept = trie.copy(), trie.arrays()
    starts, counts = kept.starts.copy(), kept.counts.copy()
    trie.add(2000, (7, 7, 7, 7, 7, 7))
    after = trie.arrays()
    changed = np.flatnonzero((after.starts[: len(starts)] != starts) | (after.counts[: len(counts)] != counts))
    assert len(changed) <= 3, "the new path leaves the old ones near the start"
    trie.remove(2000, (7, 7, 7, 7, 7, 7))
    assert walked(trie) == walked(before)


def test_room_is_used_again() -> None:
    """Items that come and go do not make the arrays grow for ever."""
    trie = TokenTrie.build([(1, 2, 3), (1, 2, 4)], END)
    sizes = set()
    for turn in range(200):
        trie.add(5, (1, 3, 3 + turn % 2))
        trie.remove(5, (1, 3, 3 + turn % 2))
        sizes.add((len(trie.arrays().starts), len(trie.arrays().tokens)))
    assert len(sizes) <= 3


@pytest.mark.parametrize("sequence", [(), (1, END, 2)])
def test_what_cannot_be_a_sequence_is_refused(sequence: tuple[int, ...]) -> None:
    with pytest.raises(TrieError, match="row 0 has sequence"):
        TokenTrie(END).add(0, sequence)


def test_twice_or_never_added_is_refused() -> None:
    trie = TokenTrie.build([(1, 2)], END)
    with pytest.raises(TrieError, match="row 0 is in the trie"):
        trie.add(0, (3,))
    for row, sequence in ((1, (1, 2)), (0, (1,)), (0, (1, 3))):
        with pytest.raises(TrieError, match=f"row {row} is not in the trie"):
            trie.remove(row, sequence)


FIXED = st.lists(st.integers(0, 3), min_size=3, max_size=3).map(tuple)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 9), FIXED, st.booleans()), max_size=40))
def test_sequences_of_one_length_need_no_end(steps: list) -> None:
    trie, model = TokenTrie(None), {}
    for row, sequence, remove in steps:
        if row in model and remove:
            trie.remove(row, model.pop(row))
        elif row not in model:
            trie.add(row, sequence)
            model[row] = sequence
        assert walked(trie) == grouped(model)
        assert all(row in trie.find(sequence) for row, sequence in model.items())
    assert trie.find((0, 1)) == []


@pytest.mark.parametrize("sequence", [(1,), (1, 2, 3, 4)])
def test_without_an_end_no_sequence_may_begin_another(sequence: tuple[int, ...]) -> None:
    trie = TokenTrie.build([(1, 2, 3)], None)
    with pytest.raises(TrieError, match=r"row 1 has sequence .* another"):
        trie.add(1, sequence)
    trie.remove(0, (1, 2, 3))
    trie.add(1, sequence)
    assert walked(trie) == {sequence: [1]}
