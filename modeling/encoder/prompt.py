"""From a history to the positions a backbone reads; the one place where prompt pieces are put together.

Pieces are tokenized one by one and joined as arrays, in training and serving alike, because the tokens of a joined
string are not the joined tokens of its pieces. Layout: static instruction, then the items, oldest to newest. Each
item ends in a *boundary*, its last position. Behind the last one an end token may stand.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

TOKEN, TEXT, ID = 1, 2, 4
"""Bits of ``Prompt.kinds_T``: the position holds a token, a title vector, an id vector (TEXT | ID: their sum)."""


class TokenizerLike(Protocol):
    """The part of a tokenizer that is used here: text to ids without special tokens."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text."""
        ...


@dataclass(frozen=True)
class TitleTokens:
    """The token ids of every catalog title, ragged: title ``n`` is ``tokens[offsets[n]:offsets[n+1]]``."""

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]

    @classmethod
    def of_titles(cls, titles: Sequence[str], tokenize: TokenizerLike, limit: int) -> TitleTokens:
        """Tokenize titles, each cut at ``limit`` tokens."""
        cut = [ids[:limit] for ids in tokenize(titles)]
        offsets = np.zeros(len(cut) + 1, np.int64)
        np.cumsum([len(ids) for ids in cut], out=offsets[1:])
        flat = np.fromiter((token for ids in cut for token in ids), np.int32, count=int(offsets[-1]))
        return cls(offsets, flat)

    def followed_by(self, separator: Sequence[int]) -> TitleTokens:
        """Every title with ``separator`` behind it, and one row more: the separator alone."""
        count, width = len(self) + 1, len(separator)
        starts = np.append(self.offsets, self.offsets[-1])
        offsets = starts + width * np.arange(count + 1)
        tokens = np.empty(int(offsets[-1]), np.int32)
        places = (offsets[1:, None] - width + np.arange(width)).ravel()
        tokens[places] = np.tile(np.asarray(separator, np.int32), count)
        others = np.ones(len(tokens), bool)
        others[places] = False
        tokens[others] = self.tokens
        return TitleTokens(offsets, tokens)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True)
class FreeItem:
    """A title that is not in the catalog: its tokens (title and text form) or its whitened title vector (compressed
    form)."""

    title: str
    tokens: NDArray[np.int32] | None = None
    text_vector: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Prompt:
    """One history as positions. ``T`` positions, ``M`` items read.

    ``values_T`` holds a token id where ``kinds_T`` is TOKEN, else a catalog row; rows from ``N`` on (``N`` =
    catalog size) mean the UNKNOWN id, and ``N + 1 + j`` takes title vector ``j`` of ``free_vectors``.

    ``first`` is the first position of the first item, behind the instruction. ``condition`` [C] is what the request
    brings for a gated adapter.
    """

    kinds_T: NDArray[np.int8]
    values_T: NDArray[np.int64]
    boundaries_M: NDArray[np.int64]
    free_vectors: tuple[NDArray[np.float32], ...] = ()
    first: int = 0
    condition: NDArray[np.float32] | None = None

    @property
    def length(self) -> int:
        """Positions the backbone will read."""
        return len(self.kinds_T)


def recent_rows(prompts: Sequence[Prompt], count: int, catalog_size: int) -> NDArray[np.int64]:
    """Rows of the newest items of every prompt, newest first, [B, R]; -1 where a history has fewer.

    Args:
        prompts: of one batch.
        count: R.
        catalog_size: N; rows of free titles, from N + 1 on, count through the batch.
    """
    found, free = np.full((len(prompts), count), -1, np.int64), 0
    for number, prompt in enumerate(prompts):
        rows = prompt.values_T[prompt.boundaries_M[: -count - 1 : -1]]
        found[number, : len(rows)] = rows + (rows > catalog_size) * free if free else rows
        free += len(prompt.free_vectors)
    return found


class PromptBuilder:
    """Puts prompts together by array copies only.

    Args:
        form: ``ids``, ``titles``, ``compressed`` or ``text`` (see ``HistorySpec``).
        vectors_per_item: 1 or 2, compressed form only.
        with_ids: whether the one vector holds that of the id, compressed form only.
        catalog_size: N, rows from 0 to N-1.
        prefix: token ids of the static instruction, the beginning-of-sequence token included.
        titles: the catalog's tokenized titles; needed by the title and text forms only.
        separator: token ids behind every title, at least one; text form only.
        suffix: token ids behind the last item.
        item_limit: at most this many of the newest items are read.
        position_limit: at most this many positions (the backbone's own limit).
    """

    def __init__(
        self,
        *,
        form: str,
        vectors_per_item: int,
        with_ids: bool = True,
        catalog_size: int,
        prefix: Sequence[int] = (),
        titles: TitleTokens | None = None,
        separator: Sequence[int] = (),
        suffix: Sequence[int] = (),
        item_limit: int,
        position_limit: int,
    ) -> None:
        if form in ("titles", "text") and (titles is None or len(titles) != catalog_size):
            given = "none" if titles is None else str(len(titles))
            raise ValueError(f"the {form} form needs one tokenized title per item: {given} for {catalog_size} items")
        if form == "text" and not len(separator):
            raise ValueError("the text form needs a separator: an item without a title would have no position")
        self.form = form
        self.catalog_size = catalog_size
        self.titles = titles
        self.item_limit = item_limit
        self.position_limit = position_limit
        self.prefix = np.asarray(list(prefix), np.int64)
        self.suffix = np.asarray(list(suffix), np.int64)
        self.separator = np.asarray(list(separator), np.int64)
        self._pieces = titles.followed_by(separator) if titles is not None and form == "text" else titles
        self._outlines: dict[tuple[int, int], tuple[NDArray[np.int8], NDArray[np.int64]]] = {}
        one = TEXT | ID if with_ids else TEXT
        compressed = [one] if vectors_per_item == 1 else [TEXT, ID]
        slots = {"ids": [ID], "titles": [ID], "compressed": compressed, "text": []}
        self.slots = np.asarray(slots[form], np.int8)
        least = len(self.slots) + len(self.separator)
        if len(self.prefix) + len(self.suffix) + least > position_limit:
            raise ValueError(
                f"the instruction takes {len(self.prefix)} positions and the backbone has {position_limit}: "
                "no room for a single item"
            )

    def of_items(self, prefix: Sequence[int], suffix: Sequence[int]) -> PromptBuilder:
        """The builder of prompts of single items: ``prefix`` before it, ``suffix`` behind it, else as in a history."""
        builder = copy.copy(self)
        builder.prefix, builder.item_limit, builder._outlines = np.asarray(list(prefix), np.int64), 1, {}
        builder.suffix = np.asarray(list(suffix), np.int64)
        return builder

    def build(self, history: Sequence[int | FreeItem]) -> Prompt:
        """The prompt of one history, oldest item first; keeps the newest items that fit.

        Raises:
            ValueError: for an empty history or a row outside the catalog.
        """
        if not len(history):
            raise ValueError("a prompt needs at least one item: the history is empty")
        prompt = self._items(history)
        return self._closed(prompt) if len(self.suffix) else prompt

    def _items(self, history: Sequence[int | FreeItem]) -> Prompt:
        if FreeItem in map(type, history):
            return self._mixed(history)
        rows = cast(Sequence[int], history)
        if self._pieces is None or not len(self._pieces.tokens):
            return self._rows_only(rows[-self._items_that_fit :])
        return self._titles_only(rows[-self.item_limit :], self._pieces)

    def _closed(self, prompt: Prompt) -> Prompt:
        """The prompt with the end token behind it."""
        kinds = np.concatenate([prompt.kinds_T, np.full(len(self.suffix), TOKEN, np.int8)])
        return replace(prompt, kinds_T=kinds, values_T=np.concatenate([prompt.values_T, self.suffix]))

    @property
    def item_lengths(self) -> NDArray[np.int64] | None:
        """Positions each catalog item takes, [N]; None where all take the same."""
        if self.titles is None:
            return None
        return np.diff(self.titles.offsets) + len(self.slots) + len(self.separator)

    @property
    def _room(self) -> int:
        """Positions for items."""
        return self.position_limit - len(self.prefix) - len(self.suffix)

    @property
    def _items_that_fit(self) -> int:
        return min(self.item_limit, self._room // len(self.slots))

    def _rows_only(self, rows: Sequence[int]) -> Prompt:
        """The common case without any title token: no loop over items, and of all that depends on their number alone
        there is one array for each number."""
        self._check(rows)
        size = len(self.prefix), len(rows)
        if (outline := self._outlines.get(size)) is None:
            outline = self._outlines[size] = self._outline(len(rows))
        values = np.array(rows, np.int64)
        if len(self.slots) > 1:
            values = np.repeat(values, len(self.slots))
        if len(self.prefix):
            values = np.concatenate([self.prefix, values])
        return Prompt(outline[0], values, outline[1], first=len(self.prefix))

    def _titles_only(self, rows: Sequence[int], titles: TitleTokens) -> Prompt:
        """Titles of the catalog, without a loop over items."""
        self._check(rows)
        before, room, slots = len(self.prefix), self._room, len(self.slots)
        rows_M = np.array(rows, np.int64)
        # a title and its slot; an unknown item has no title, and whatever fills all the room is cut if it is the newest
        starts_M = titles.offsets[rows_M]
        lengths_M = titles.offsets[np.minimum(rows_M + 1, len(titles))] - starts_M + slots
        lengths_M = np.minimum(lengths_M, room)
        ends_M = lengths_M.cumsum()
        if (surplus := int(ends_M[-1]) - room) > 0:
            oldest = int(ends_M.searchsorted(surplus)) + 1  # the first of those that stay
            rows_M, starts_M, lengths_M = rows_M[oldest:], starts_M[oldest:], lengths_M[oldest:]
            ends_M = lengths_M.cumsum()
        total = int(ends_M[-1])
        # the token behind each title is taken too, where the slot comes
        from_P = np.arange(total) + (starts_M - ends_M + lengths_M).repeat(lengths_M)
        values = np.empty(before + total, np.int64)
        values[:before] = self.prefix
        values[before:] = titles.tokens.take(from_P, mode="clip")
        kinds = np.full(before + total, TOKEN, np.int8)
        boundaries_M = ends_M + (before - 1)
        if slots:
            values[boundaries_M], kinds[boundaries_M] = rows_M, self.slots[0]
        return Prompt(kinds, values, boundaries_M, first=before)

    def _check(self, rows: Sequence[int]) -> None:
        lowest, highest = min(rows), max(rows)
        if lowest < 0 or highest > self.catalog_size:
            raise ValueError(
                f"history row {lowest if lowest < 0 else highest} is outside the catalog: "
                f"rows are 0 to {self.catalog_size - 1} ({self.catalog_size} stands for an unknown item)"
            )

    def _outline(self, items: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
        """Kinds and last positions of so many items; not to be written to."""
        before, width = len(self.prefix), len(self.slots)
        kinds = np.concatenate([np.full(before, TOKEN, np.int8), np.tile(self.slots, items)])
        boundaries = before + width * np.arange(1, items + 1) - 1
        return kinds, boundaries

    def _mixed(self, history: Sequence[int | FreeItem]) -> Prompt:
        """Titles or free text: walk back from the newest item until the positions are used up."""
        room = self._room
        pieces: list[tuple[NDArray[np.int64], int, NDArray[np.float32] | None]] = []
        for item in reversed(history[-self.item_limit :]):
            tokens, row, vector = self._piece(item)
            need = len(tokens) + len(self.slots)
            if need > room:
                if pieces:
                    break
                tokens = tokens[: room - len(self.slots)]
                need = len(tokens) + len(self.slots)
            room -= need
            pieces.append((tokens, row, vector))
        return self._join(pieces[::-1])

    def _piece(self, item: int | FreeItem) -> tuple[NDArray[np.int64], int, NDArray[np.float32] | None]:
        if isinstance(item, FreeItem):
            tokens = item.tokens if self.titles is not None and item.tokens is not None else ()
            found = np.asarray(tokens, np.int64)
            return np.concatenate([found, self.separator]), self.catalog_size, item.text_vector
        if not 0 <= item <= self.catalog_size:
            raise ValueError(f"history row {item} is outside the catalog: rows are 0 to {self.catalog_size - 1}")
        if self._pieces is None or item == len(self._pieces):
            return np.empty(0, np.int64), item, None
        return self._pieces[item].astype(np.int64), item, None

    def _join(self, pieces: Sequence[tuple[NDArray[np.int64], int, NDArray[np.float32] | None]]) -> Prompt:
        width, free = len(self.slots), []
        lengths = np.asarray([len(tokens) + width for tokens, _, _ in pieces])
        boundaries = len(self.prefix) + np.cumsum(lengths) - 1
        kinds = np.full(len(self.prefix) + int(lengths.sum()), TOKEN, np.int8)
        values = np.empty(len(kinds), np.int64)
        values[: len(self.prefix)] = self.prefix
        for end, (tokens, row, vector) in zip(boundaries + 1, pieces, strict=True):
            if vector is not None:
                free.append(vector)
                row = self.catalog_size + len(free)
            values[end - width - len(tokens) : end - width] = tokens
            kinds[end - width : end] = self.slots
            values[end - width : end] = row
        return Prompt(kinds, values, boundaries, tuple(free), first=len(self.prefix))
