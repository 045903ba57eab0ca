"""A catalog whose items change: the one of an artifact, and beside it the newest content of every changed item.

Rows 0..N-1 are the artifact's. A changed item has the row N + number of its last change, so that rows of all replicas
mean the same, rise with every change, and are never used twice. Changes are made on one thread; others may read
meanwhile and see each change whole or not at all.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from index.base import Mask, RowArray
from index.catalog import Catalog
from index.filters.language import CATEGORIES, AttributeValue, Filter, Kind, matches, typed
from index.text import title_key

T = TypeVar("T")
FORGOTTEN_AFTER = 4096
"""Changes after which the content of a row that was replaced is forgotten: answers that name it are long sent."""
CHANGES_KEPT = 4096
"""Last changes by which what was found in an older generation can be brought up to date."""


@dataclass(frozen=True, slots=True)
class ChangedItem:
    """An item as it is since its last change.

    Attributes:
        item_id, title, categories: as in `Catalog`.
        attributes: typed values by name.
        open: whether it may be recommended.
        trained_row: its row in the artifact's catalog; None where that has no such item.
        popularity: that of the artifact's catalog; 0 for an item that it does not have.
        live: whether it may be shown. One that may be, but that the artifact cannot find, is live and not open.
    """

    item_id: str
    title: str
    categories: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    open: bool = True
    trained_row: int | None = None
    popularity: int = 0
    live: bool = True


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
        self._log: list[tuple[int, int]] = []  # of the last generations: the row that was opened and closed, or -1
        self._titled: dict[str, set[int]] = {}  # rows of changed items by title
        self._kinds: dict[str, set[Kind]] = {}  # of attributes of changed items, also of those that are gone
        self.open_N: Mask = np.ones(len(trained), bool)
        """Rows of the artifact that its items still have; one that is closed stays so."""
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
            self.open_N[trained] = False
            gone.append(trained)
        before, opened = self._row_of.get(item_id, -1), -1
        if before >= 0:
            gone.append(before)
            self._count(self._open.pop(before, None), -1)
            self._rename(before, self._changed.get(before), None)
            self._replaced.append(before)
        if item is None:
            self._row_of[item_id] = -1
        else:
            self._changed[row] = item
            self._row_of[item_id] = row
            self._rename(row, None, item)
            if item.open:
                self._open[row] = item
                opened = row
                self._count(item, 1)
        while len(self._replaced) > FORGOTTEN_AFTER:
            self._changed.pop(self._replaced.pop(0), None)
        self.generation += 1
        self._log.append((opened, before))
        if len(self._log) > 2 * CHANGES_KEPT:
            del self._log[:CHANGES_KEPT]
        return gone

    def _count(self, item: ChangedItem | None, by: int) -> None:
        if item is None:
            return
        for name in item.categories:
            self._categories[name] = self._categories.get(name, 0) + by
        for name, value in item.attributes.items() if by > 0 else ():
            self._kinds.setdefault(name, set()).update(
                kind for kind, _ in map(typed, value if isinstance(value, tuple) else (value,))
            )

    def _rename(self, row: int, before: ChangedItem | None, now: ChangedItem | None) -> None:
        if before is not None:
            rows = self._titled.get(key := title_key(before.title), set())
            rows.discard(row)
            if not rows:
                self._titled.pop(key, None)
        if now is not None:
            self._titled.setdefault(title_key(now.title), set()).add(row)

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

    def titled(self, title: str) -> list[int]:
        """The rows of the items that have this title, or had it when the artifact was trained."""
        trained = self.trained.titled(title)
        return [*self.latest(trained), *self._titled.get(title_key(title), ())] if self.changed else trained

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

    def is_live(self, row: int) -> bool:
        """Whether the item of a row may be shown, as it is now: open, or one that the artifact cannot find itself."""
        if self.is_open(row):
            return True
        item = self._changed.get(row)
        return item is not None and item.live and self._row_of.get(item.item_id) == row

    def live_row(self, item_id: str) -> int | None:
        """The row of an item that may be shown; None for one that may not, or does not exist."""
        row = self.row(item_id)
        return row if row is not None and self.is_live(row) else None

    def item(self, row: int) -> ChangedItem | None:
        """The content of a changed item; None for a row of the artifact."""
        return self._changed.get(row)

    def attributes(self, row: int) -> Mapping[str, AttributeValue]:
        """Typed values by name."""
        found = self._changed.get(row)
        return self.trained.attributes(row) if found is None else found.attributes

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

    def by_popularity(self, trained: RowArray | None = None, changed: RowArray | None = None) -> Iterator[int]:
        """Rows that may be recommended, the most popular first, ties in row order: of the rows of the artifact in
        ``trained`` (most popular first; None: all) and the changed ones in ``changed`` (None: all)."""
        order = self.trained.popular() if trained is None else trained
        popularity = self.trained.popularity
        rows = list(self._open) if changed is None else changed.tolist()
        found = sorted((-self._open[row].popularity, row) for row in rows if row in self._open)
        kept = ((-int(popularity[row]), row) for row in _in_parts(order) if row not in self._closed)
        return (row for _, row in heapq.merge(kept, found))

    # -- filters ---------------------------------------------------------------------------------------------------

    @property
    def known_attributes(self) -> tuple[str, ...]:
        """Names of the attributes that some item has or had, in alphabetical order."""
        return tuple(sorted({*self.trained.table.kinds, *self._kinds} - {CATEGORIES}))

    def kinds(self, name: str) -> Set[Kind]:
        """Types of the values that items have or had under a name; none for an unknown name."""
        return {*self.trained.table.kinds.get(name, ()), *self._kinds.get(name, ())}

    def passes(self, wanted: Filter, row: int) -> bool:
        """Whether the item of a row passes a filter."""
        return matches(wanted, self.attributes(row), self.categories[row])

    def changed_rows(self, wanted: Filter, before: RowArray, generation: int) -> RowArray | None:
        """Rows, ascending, of changed items that may be recommended and pass a filter, from those of an older
        generation; None where that is too old."""
        if self.generation - generation > len(self._log):
            return None
        rows: list[int] | None = None
        for opened, closed in self._log[len(self._log) - (self.generation - generation) :]:
            if opened < 0 and closed < 0:
                continue
            rows = before.tolist() if rows is None else rows
            if closed >= 0 and (place := bisect_left(rows, closed)) < len(rows) and rows[place] == closed:
                del rows[place]
            item = self._open.get(opened)
            if item is not None and matches(wanted, item.attributes, item.categories):
                rows.insert(bisect_left(rows, opened), opened)
        return before if rows is None else np.array(rows, np.int64)

    def all_changed(self) -> list[tuple[int, ChangedItem]]:
        """Changed items that may be recommended, by row: of this moment."""
        return list(self._open.items())


def _in_parts(rows: RowArray) -> Iterator[int]:
    for start in range(0, len(rows), 1024):
        yield from rows[start : start + 1024].tolist()
