"""A trie over token sequences in plain arrays: which tokens may follow a prefix, and which items a sequence names.

The children of a state lie side by side, so the continuations of many states are one gather, without a mask as wide
as the vocabulary and without walking objects (STATIC, arXiv 2602.22647, keeps them as compressed rows). A state's block
that is full moves to the end with twice the room, so an item is added or removed by touching its own path only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index.base import RowArray

ROOT = 0


class TrieError(ValueError):
    """A sequence cannot be held, or is not there; the message is one sentence."""


@dataclass(frozen=True)
class TrieArrays:
    """The trie as it stands: children of state s are `tokens[starts[s] : starts[s] + counts[s]]`, and `targets` holds
    the states they lead to. State 0 is the start. A sequence ends in a state without children.
    """

    starts: RowArray
    counts: RowArray
    tokens: RowArray
    targets: RowArray


class TokenTrie:
    """Items by their token sequences. Not for changing and reading from two threads at once: change a `copy` and swap.

    Every sequence is closed with `end`, so one may be the beginning of another; items with the same sequence share
    its last state. Where `end` is None nothing closes them, and none may be the beginning of another.
    """

    def __init__(self, end: int | None) -> None:
        self.end = end
        self._starts = np.zeros(1, np.int64)
        self._counts = np.zeros(1, np.int64)
        self._rooms = np.zeros(1, np.int64)
        self._below = np.zeros(1, np.int64)  # items below a state
        self._tokens = np.zeros(0, np.int64)
        self._targets = np.zeros(0, np.int64)
        self._states, self._used = 1, 0
        self._items: dict[int, list[int]] = {}  # last state → rows
        self._last: dict[int, int] = {}  # row → last state
        self._free: list[int] = []

    @classmethod
    def build(cls, sequences: Sequence[Sequence[int]], end: int | None) -> TokenTrie:
        """A trie in which row n has `sequences[n]`, without its end; raises `TrieError`."""
        trie = cls(end)
        for row in sorted(range(len(sequences)), key=lambda row: tuple(sequences[row])):
            trie.add(row, sequences[row])
        return trie

    def __len__(self) -> int:
        return len(self._last)

    def add(self, row: int, sequence: Sequence[int]) -> None:
        """Give `row` a sequence; raises `TrieError` if it has one, or the sequence is empty or holds the end token, or
        nothing closes it and it is the beginning of another, or another is of it."""
        if row in self._last:
            raise TrieError(f"row {row} is in the trie; remove it before it gets another sequence")
        if not len(sequence) or self.end in sequence:
            raise TrieError(
                f"row {row} has sequence {list(sequence)[:8]}; it must hold tokens, and not the end {self.end}"
            )
        if self.end is None:
            self._refuse_beginnings(row, sequence)
        state = ROOT
        self._below[ROOT] += 1
        for token in self._closed(sequence):
            state = self._child(state, int(token)) or self._grow(state, int(token))
            self._below[state] += 1
        self._items.setdefault(state, []).append(row)
        self._last[row] = state

    def remove(self, row: int, sequence: Sequence[int]) -> None:
        """Take `row` out, whose sequence this is; raises `TrieError` if it is not there."""
        path = self._walk(self._closed(sequence))
        if path is None or self._last.get(row) != path[-1]:
            raise TrieError(f"row {row} is not in the trie under sequence {list(sequence)[:8]}")
        for parent, state in itertools.pairwise(path):
            self._below[state] -= 1
            if not self._below[state]:
                self._cut(parent, state)
        self._below[ROOT] -= 1
        last = self._last.pop(row)
        self._items[last].remove(row)
        if not self._items[last]:
            del self._items[last]
        self._free.extend(state for state in path[1:] if not self._below[state])

    def items(self, state: int) -> list[int]:
        """Rows whose sequence ends in `state`; several where titles are alike, none where no sequence ends."""
        return list(self._items.get(state, ()))

    def find(self, sequence: Sequence[int]) -> list[int]:
        """Rows with exactly this sequence."""
        path = self._walk(self._closed(sequence))
        return [] if path is None else self.items(path[-1])

    def arrays(self) -> TrieArrays:
        """The arrays as they stand, without a copy: valid until the next change."""
        return TrieArrays(
            self._starts[: self._states],
            self._counts[: self._states],
            self._tokens[: max(1, self._used)],
            self._targets[: max(1, self._used)],
        )

    def sequences(self) -> Iterator[tuple[tuple[int, ...], list[int]]]:
        """Every sequence that can be walked, with its rows."""
        stack: list[tuple[int, tuple[int, ...]]] = [(ROOT, ())]
        while stack:
            state, tokens = stack.pop()
            for place in range(self._starts[state], self._starts[state] + self._counts[state]):
                token, target = int(self._tokens[place]), int(self._targets[place])
                if token == self.end:
                    yield tokens, self.items(target)
                elif target in self._items:
                    yield (*tokens, token), self.items(target)
                else:
                    stack.append((target, (*tokens, token)))

    def copy(self) -> TokenTrie:
        """An independent trie with the same content."""
        other = TokenTrie(self.end)
        for name in ("_starts", "_counts", "_rooms", "_below", "_tokens", "_targets"):
            setattr(other, name, getattr(self, name).copy())
        other._states, other._used = self._states, self._used
        other._items = {state: list(rows) for state, rows in self._items.items()}
        other._last, other._free = dict(self._last), list(self._free)
        return other

    def _closed(self, sequence: Sequence[int]) -> tuple[int, ...]:
        return tuple(sequence) if self.end is None else (*sequence, self.end)

    def _refuse_beginnings(self, row: int, sequence: Sequence[int]) -> None:
        state = ROOT
        for place, token in enumerate(sequence, start=1):
            if not (state := self._child(state, int(token))):
                return
            last = place == len(sequence)
            if (state in self._items) != last:
                raise TrieError(
                    f"row {row} has sequence {list(sequence)[:8]}, which "
                    + ("is the beginning of another" if last else f"begins with all of another ({place} tokens)")
                    + ": without an end token they cannot be told apart"
                )

    def _walk(self, tokens: Sequence[int]) -> list[int] | None:
        path = [ROOT]
        for token in tokens:
            child = self._child(path[-1], int(token))
            if not child:
                return None
            path.append(child)
        return path

    def _child(self, state: int, token: int) -> int:
        """The state that `token` leads to, or 0 (nothing leads back to the start)."""
        start = self._starts[state]
        found = np.flatnonzero(self._tokens[start : start + self._counts[state]] == token)
        return int(self._targets[start + found[0]]) if len(found) else 0

    def _grow(self, state: int, token: int) -> int:
        if self._counts[state] == self._rooms[state]:
            self._move(state)
        place = self._starts[state] + self._counts[state]
        child = self._free.pop() if self._free else self._new_state()
        self._tokens[place], self._targets[place] = token, child
        self._counts[state] += 1
        return child

    def _move(self, state: int) -> None:
        """Give a state's children a block of twice the size, at the end."""
        count = int(self._counts[state])
        room = max(1, 2 * count)
        while self._used + room > len(self._tokens):
            self._tokens, self._targets = _doubled(self._tokens), _doubled(self._targets)
        old, new = int(self._starts[state]), self._used
        for array in (self._tokens, self._targets):
            array[new : new + count] = array[old : old + count]
        self._starts[state], self._rooms[state] = new, room
        self._used += room

    def _new_state(self) -> int:
        if self._states == len(self._starts):
            for name in ("_starts", "_counts", "_rooms", "_below"):
                setattr(self, name, _doubled(getattr(self, name)))
        self._states += 1
        return self._states - 1

    def _cut(self, parent: int, child: int) -> None:
        """Take a child off its parent; the last of its siblings takes its place."""
        start, count = int(self._starts[parent]), int(self._counts[parent])
        found = np.flatnonzero(self._targets[start : start + count] == child)
        if not len(found):
            return  # its own parent was cut off before
        place, last = start + int(found[0]), start + count - 1
        self._tokens[place], self._targets[place] = self._tokens[last], self._targets[last]
        self._counts[parent] -= 1


def _doubled(array: RowArray) -> RowArray:
    bigger = np.zeros(max(16, 2 * len(array)), array.dtype)
    bigger[: len(array)] = array
    return bigger
