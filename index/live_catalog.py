"""A catalog whose items change: the one of an artifact, and beside it the newest content of every changed item.

Rows 0..N-1 are the artifact's. A changed item has the row N + number of its last change, so that rows of all replicas
mean the same, rise with every change, and are never used twice. Changes are made on one thread; others may read
meanwhile and see each change whole or not at all.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from index.base import RowArray
from index.catalog import Catalog

T = TypeVar("T")
AttributeValue = str | int | float | bool | tuple[str, ...]
FORGOTTEN_AFTER = 4096
"""Changes after which the content of a row that was replaced is forgotten: answers that name it are long sent."""


@dataclass(frozen=True, slots=True)
class ChangedItem:
    """An item as it is since its last change.

    Attributes:
        item_id, title, categories: as in `Catalog`.
        attributes: typed values by name.
        open: whether it may be recommended.
        trained_row: its row in the artifact's catalog; None where that has no such item.
        popularity: that of the artifact's catalog; 0 for an item that it does not have.
    """

    item_id: str
    title: str
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    open: bool = True
    trained_row: int | None = None
    popularity: int = 0


class _Column(Generic[T]):
    """A column by row, of both kinds of rows."""

    def __init__(self, trained: Sequence[T], changed: Mapping[int, ChangedItem], name: str) -> None:
        self._trained, self._changed, self._name = trained, changed, name

    def __getitem__(self, row: int) -> T:
        if row < len(self._trained):
            return self._trained[row]
        found: T = getattr(self._changed[row], self._name)
        return found


class LiveCatalog:
    """The catalog of one artifact as it is now.

    Args:
        trained: of the artifact.
    """

    def __init__(self, trained: Catalog) -> None:
        self.trained = trained
        self.generation = 0
        """Rises with every change."""
        self._changed: dict[int, ChangedItem] = {}
        self._row_of: dict[str, int] = {}  # of changed items; -1 for those that do not exist any more
        self._closed: set[int] = set()  # rows of the artifact that are not to be recommended
        self._open: dict[int, ChangedItem] = {}
        self._replaced: list[int] = []
        self._categories: dict[str, int] = {}  # open changed items in each
        self.item_ids: _Column[str] = _Column(trained.item_ids, self._changed, "item_id")
        self.titles: _Column[str] = _Column(trained.titles, self._changed, "title")
        self.categories: _Column[tuple[str, ...]] = _Column(trained.categories, self._changed, "categories")
        self.popularity: _Column[int] = _Column(trained.popularity, self._changed, "popularity")  # type: ignore[arg-type]

    def __len__(self) -> int:
        """Items that may be recommended."""
        return len(self.trained) - len(self._closed) + len(self._open)

    # -- changes -------------------------------------------------------------------------------------------------

    def change(self, item_id: str, row: int, item: ChangedItem | None) -> list[int]:
        """Give an item a new content under a new row, None for an item that is deleted; returns the rows that are not
        to be answered with any more."""
        gone = []
        trained = self.trained.row(item_id)
        if trained is not None and trained not in self._closed:
            self._closed.add(trained)
            gone.append(trained)
        before = self._row_of.get(item_id, -1)
        if before >= 0:
            gone.append(before)
            self._count(self._open.pop(before, None), -1)
            self._replaced.append(before)
        if item is None:
            self._row_of[item_id] = -1
        else:
            self._changed[row] = item
            self._row_of[item_id] = row
            if item.open:
                self._open[row] = item
                self._count(item, 1)
        while len(self._replaced) > FORGOTTEN_AFTER:
            self._changed.pop(self._replaced.pop(0), None)
        self.generation += 1
        return gone

    def _count(self, item: ChangedItem | None, by: int) -> None:
        for name in () if item is None else item.categories:
            self._categories[name] = self._categories.get(name, 0) + by

    # -- one item ------------------------------------------------------------------------------------------------

    def row(self, item_id: str) -> int | None:
        """The row of an item as it is now; None where there is no such item (any more)."""
        found = self._row_of.get(item_id)
        if found is None:
            return self.trained.row(item_id)
        return None if found < 0 else found

    def rows(self, items: Sequence[object]) -> list[int] | None:
        """The rows of item ids; None where one is not an id of an item that there is."""
        if not self._row_of:
            return self.trained.rows(items)
        found = [self.row(item) if isinstance(item, str) else None for item in items]
        return None if None in found else found  # type: ignore[return-value]

    def trained_row(self, item_id: str) -> int | None:
        """The row under which the artifact was trained on an item, however it changed since."""
        return self.trained.row(item_id)

    def remembers(self, row: int) -> bool:
        """Whether the content of a row is known: not that of one that was replaced long ago."""
        return row < len(self.trained) or row in self._changed

    def latest(self, rows: Sequence[int]) -> Sequence[int]:
        """The rows that the items of ``rows`` have now; what does not exist any more is left out."""
        if not self._row_of:
            return rows
        known = [self.item_ids[row] for row in rows if self.remembers(row)]
        return [row for row in map(self.row, known) if row is not None]

    def is_open(self, row: int) -> bool:
        """Whether a row may be answered with now."""
        if row < len(self.trained):
            return row >= 0 and row not in self._closed
        return row in self._open

    def item(self, row: int) -> ChangedItem | None:
        """The content of a changed item; None for a row of the artifact."""
        return self._changed.get(row)

    def attributes(self, row: int) -> Mapping[str, AttributeValue]:
        """Typed values by name; an item that was never changed has none."""
        found = self._changed.get(row)
        return {} if found is None else found.attributes

    @property
    def changed(self) -> bool:
        """Whether any item differs from the artifact's."""
        return bool(self._row_of)

    # -- many items ----------------------------------------------------------------------------------------------

    def current(self, row: int) -> int | None:
        """The row that answers for a row now: its own, or that of the item as it changed since; None where it may not
        be answered with."""
        if self.is_open(row):
            return row
        found = self.latest((row,))
        return found[0] if found and self.is_open(found[0]) else None

    def open_row(self, item_id: str) -> int | None:
        """The row of an item that may be answered with; None for one that may not, or does not exist."""
        row = self.row(item_id)
        return row if row is not None and self.is_open(row) else None

    def withdrawn(self) -> frozenset[int]:
        """Rows of the artifact whose items may not be answered with, as they are now."""
        return frozenset(row for row in self._closed if self.current(row) is None)

    def new_titles(self) -> dict[int, str]:
        """Titles, by row, of items that may be answered with and that the artifact does not have."""
        return {row: item.title for row, item in self._open.items() if item.trained_row is None}

    @property
    def known_categories(self) -> tuple[str, ...]:
        """Every category that some item has or had when the artifact was trained, in alphabetical order."""
        new = [name for name, count in list(self._categories.items()) if count > 0]
        return tuple(sorted({*self.trained.known_categories, *new}))

    def has_new_category(self, name: str) -> bool:
        """Whether a changed item that may be recommended has it."""
        return self._categories.get(name, 0) > 0

    def search(self, query: str = "", limit: int = 20, offset: int = 0) -> list[int]:
        """As `Catalog.search`, over the items that may be recommended."""
        if not self.changed:
            return self.trained.search(query, limit, offset)
        words = tuple(dict.fromkeys(query.casefold().split()))
        titles = self.titles
        rows = self.by_popularity()
        found = (row for row in rows if all(word in titles[row].casefold() for word in words))
        return list(islice(found, offset, offset + limit))

    def by_popularity(self, categories: Sequence[str] = (), trained: RowArray | None = None) -> Iterator[int]:
        """Rows that may be recommended, the most popular first, ties in row order; with ``categories`` items in one of
        them. ``trained`` is `Catalog.popular` of the same categories, where it is known."""
        order = self.trained.popular(categories) if trained is None else trained
        popularity = self.trained.popularity
        changed = sorted((-item.popularity, row) for row, item in self._open_in(categories))
        kept = ((-int(popularity[row]), row) for row in _in_parts(order) if row not in self._closed)
        return (row for _, row in heapq.merge(kept, changed))

    def in_categories(self, categories: Iterable[str], trained: RowArray | None = None) -> RowArray:
        """Rows that may be recommended, ascending, of items in at least one of ``categories``; ``trained`` as above."""
        names = tuple(categories)
        rows = self.trained.in_categories(names) if trained is None else trained
        changed = sorted(row for row, _ in self._open_in(names))
        return np.concatenate([rows, np.array(changed, np.int64)]) if changed else rows

    def _open_in(self, categories: Sequence[str]) -> Iterator[tuple[int, ChangedItem]]:
        wanted = set(categories)
        for row, item in list(self._open.items()):
            if not wanted or not wanted.isdisjoint(item.categories):
                yield row, item


def _in_parts(rows: RowArray) -> Iterator[int]:
    for start in range(0, len(rows), 1024):
        yield from rows[start : start + 1024].tolist()
