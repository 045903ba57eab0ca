"""Filters of requests as rows of the items that pass them: compiled once for each distinct filter, and brought up to
date where items changed since.

Rows of the artifact that pass are found once. Of changed items only those are looked at that changed since the last
time. Arrays are kept within a number of bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from index.base import RowArray
from index.filters.checking import FilterError, check_filter
from index.filters.language import Filter, matches
from index.live_catalog import ChangedItem, LiveCatalog
from service.caches.local import ArrayCache
from service.concurrency.searches import Searches
from service.errors import InvalidInput

FILTERS_KEPT, FILTER_BYTES = 256, 64 << 20  # filters whose rows are kept, and the memory of these rows
QUICK = 1 << 17  # rows up to which copying them is no work for another thread


@dataclass(frozen=True, slots=True, eq=False)
class CompiledFilter:
    """A filter as rows, ascending: of the artifact, whatever became of them, of items that changed, and all of them
    that may be answered with in a generation of the catalog."""

    trained: RowArray
    changed: RowArray
    rows: RowArray
    generation: int

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        own = 0 if self.rows is self.trained else self.rows.nbytes
        return self.trained.nbytes + self.changed.nbytes + own


class Filters:
    """The filters of one artifact. All methods run on the event loop; what is long runs on the thread of `searches`."""

    def __init__(self, catalog: LiveCatalog, searches: Searches) -> None:
        self._catalog, self._searches = catalog, searches
        self._compiled: ArrayCache[CompiledFilter] = ArrayCache(FILTERS_KEPT, FILTER_BYTES)
        self._orders: ArrayCache[RowArray] = ArrayCache(FILTERS_KEPT, FILTER_BYTES)
        self._at_work: dict[Filter, asyncio.Task[CompiledFilter]] = {}

    def check(self, wanted: Filter) -> None:
        """Raise InvalidInput for an attribute that no item has, and for values of another type than it has."""
        try:
            check_filter(wanted, self._catalog.kinds, lambda: self._catalog.known_attributes)
        except FilterError as error:
            raise InvalidInput(str(error), field="filter", code=error.code) from None

    async def rows(self, wanted: Filter) -> RowArray:
        """Return the only rows to answer with, the same array for the same filter until an item changes. Raises
        Overloaded, DeadlineExceeded."""
        return (await self._now(wanted)).rows

    async def by_popularity(self, wanted: Filter | None) -> Iterator[int]:
        """Return rows to answer with, the most popular first. Raises as `rows`."""
        if wanted is None:
            return self._catalog.by_popularity()
        compiled = await self._now(wanted)
        order = self._orders.get(wanted)
        if order is None:
            order = await self._searches.run(partial(_ordered, self._catalog, compiled.trained))
            self._orders.put(wanted, order)
        return self._catalog.by_popularity(order, compiled.changed)

    # -- steps -----------------------------------------------------------------------------------------------

    async def _now(self, wanted: Filter) -> CompiledFilter:
        known = self._compiled.get(wanted)
        if known is not None:
            if known.generation == self._catalog.generation:
                return known
            changed = self._catalog.changed_rows(wanted, known.changed, known.generation)
            if changed is not None and len(known.trained) <= QUICK:
                found = _joined(self._catalog, known, changed, self._catalog.generation)
                self._compiled.put(wanted, found)
                return found
        task = self._at_work.get(wanted)
        if task is None:
            task = self._at_work[wanted] = asyncio.create_task(self._compile(wanted, known))
            task.add_done_callback(lambda _: self._at_work.pop(wanted, None))
        return await asyncio.shield(task)  # others wait for it too

    async def _compile(self, wanted: Filter, known: CompiledFilter | None) -> CompiledFilter:
        generation = self._catalog.generation
        changed = None if known is None else self._catalog.changed_rows(wanted, known.changed, known.generation)
        work: Callable[[], CompiledFilter]
        if known is not None and changed is not None:
            work = partial(_joined, self._catalog, known, changed, generation)
        else:
            work = partial(_compiled, self._catalog, wanted, self._catalog.all_changed(), generation)
        found = await self._searches.run(work)
        self._compiled.put(wanted, found)
        return found


def _compiled(
    catalog: LiveCatalog, wanted: Filter, items: list[tuple[int, ChangedItem]], generation: int
) -> CompiledFilter:
    trained = catalog.trained.table.rows(wanted)
    changed = sorted(row for row, item in items if matches(wanted, item.attributes, item.categories))
    nothing = CompiledFilter(trained, np.empty(0, np.int64), trained, 0)
    return _joined(catalog, nothing, np.array(changed, np.int64), generation)


def _joined(catalog: LiveCatalog, before: CompiledFilter, changed: RowArray, generation: int) -> CompiledFilter:
    """Rows that were found before, with other changed rows, and without rows of the artifact that are closed now."""
    trained = before.trained
    kept = trained if not catalog.changed else trained[catalog.open_N[trained]]
    if len(changed):
        rows = np.concatenate([kept, changed])
    else:
        rows = trained if len(kept) == len(trained) else kept
    if np.array_equal(rows, before.rows):
        rows = before.rows  # requests with the same array are searched together
    return replace(before, changed=changed, rows=rows, generation=generation)


def _ordered(catalog: LiveCatalog, rows: RowArray) -> RowArray:
    """Rows of the artifact, the most popular first."""
    order = catalog.trained.popular()
    mask_N = np.zeros(len(order), bool)
    mask_N[rows] = True
    found: RowArray = order[mask_N[order]]
    return found
