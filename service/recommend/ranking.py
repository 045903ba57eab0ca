"""Candidates of a ranking request, and the answer: the same for every way of scoring them.

The work of a request does not depend on the order of its candidates: rows of the catalog come first, ascending, then
free titles. Of equal scores the first in this order is the better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from index import Catalog
from index.filters.language import Filter, matches
from index.live_catalog import LiveCatalog
from modeling.methods.base_ranking import best_first
from service.errors import NothingUsable, shown
from service.recommend.base import Source
from service.recommend.histories import IDS_SHOWN, History
from service.recommend.requests import RankQuery, TitledItem


@dataclass(frozen=True, slots=True)
class CandidateItems:
    """Candidates of a request: rows and free titles, none twice, and those left out with the reason.

    `filtered` ones do not pass the filter `wanted`. With `by_title` rows may be of items that the artifact cannot find.
    """

    rows: list[int]
    titles: list[str]
    unknown: list[str]
    repeated: list[str]
    filtered: list[str] = field(default_factory=list)
    wanted: Filter | None = None
    by_title: bool = False

    @property
    def parts(self) -> list[int | str]:
        """All of them, in the order in which they are scored."""
        return [*self.rows, *self.titles]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Rows and free titles, best first, their scores, and how they came about."""

    items: list[int | str]
    scores: list[float]
    source: Source
    candidates: CandidateItems
    ignored: list[str]
    degraded: list[str]
    seconds: dict[str, float] = field(default_factory=dict)

    def shown(self, catalog: LiveCatalog) -> Ranking:
        """Return it without the items that may not be shown any more, which are unknown now; of an item that changed,
        the row that it has now. Call it when nothing is awaited until it is sent."""
        may_be_shown = catalog.is_live if self.candidates.by_title else catalog.is_open
        if all(isinstance(item, str) or may_be_shown(item) for item in self.items):
            return self
        now = [item if isinstance(item, str) else self._now(catalog, item) for item in self.items]
        kept = [(item, score) for item, score in zip(now, self.scores, strict=True) if item is not None]
        gone = [item for item, found in zip(self.items, now, strict=True) if found is None]
        names = [catalog.item_ids[item] for item in gone if not isinstance(item, str) and catalog.remembers(item)]
        return replace(
            self,
            items=[item for item, _ in kept],
            scores=[score for _, score in kept],
            candidates=replace(self.candidates, unknown=[*self.candidates.unknown, *names]),
        )

    def _now(self, catalog: LiveCatalog, row: int) -> int | None:
        """The row of an item now; None where it may not be shown, or does not pass the filter any more."""
        wanted = self.candidates.wanted
        if self.candidates.by_title:
            now = next((new for new in catalog.latest((row,)) if catalog.is_live(new)), None)
        else:
            now = catalog.current(row)
        return now if now is None or now == row or wanted is None or catalog.passes(wanted, now) else None


def resolve_candidates(query: RankQuery, catalog: LiveCatalog, *, by_title: bool = False) -> CandidateItems:
    """Return the candidates of a request; one that is given several times counts once, one that may not be recommended
    now is unknown. With `by_title` an item that may be shown, and that the artifact cannot find, is a candidate: for a
    ranker that reads its title. Raises NothingUsable where none of them can be ranked."""
    row_of = catalog.live_row if by_title else catalog.open_row
    rows: dict[int, None] = {}
    titles: dict[str, None] = {}
    filtered: dict[str, None] = {}
    unknown: dict[str, None] = {}
    repeated: dict[str, None] = {}
    for item in query.candidates:
        if isinstance(item, TitledItem):
            name, again = item.title, item.title in titles
            passes = query.filter is None or matches(query.filter, {}, ())
            (titles if passes else filtered)[name] = None
        elif (row := row_of(item)) is not None:
            name, again = item, row in rows
            if query.filter is None or catalog.passes(query.filter, row):
                rows[row] = None
            else:
                filtered[item] = None
        else:
            name, again = item, False
            unknown[item] = None
        if again:
            repeated[name] = None
    if filtered and not rows and not titles:
        raise NothingUsable(
            f"none of the {len(filtered)} candidates that are in the catalog passes the filter",
            field="filter",
            code="no_usable_candidates",
        )
    if not rows and not titles:
        ids = ", ".join(shown(item) for item in list(unknown)[:IDS_SHOWN])
        more = f" and {len(unknown) - IDS_SHOWN} more" if len(unknown) > IDS_SHOWN else ""
        raise NothingUsable(
            f"none of the candidates is in the catalog of {len(catalog)} items: {ids}{more}; GET /items lists the ids "
            "there are",
            field="candidates",
            code="no_usable_candidates",
        )
    return CandidateItems(
        sorted(rows), sorted(titles), list(unknown), list(repeated), list(filtered), query.filter, by_title
    )


def ranked(
    found: CandidateItems,
    scores_C: NDArray[np.float32],
    source: Source,
    history: History,
    seconds: dict[str, float],
) -> Ranking:
    """Return the answer to scores in the order of `found.parts`."""
    parts, order = found.parts, best_first(scores_C).tolist()
    return Ranking(
        [parts[place] for place in order],
        [float(scores_C[place]) for place in order],
        source,
        found,
        history.ignored,
        history.degraded,
        seconds,
    )


def ranked_by_popularity(found: CandidateItems, catalog: LiveCatalog, history: History) -> Ranking:
    """Return the answer where nothing is known of a user; a free title has no count."""
    counts = [*(float(catalog.popularity[row]) for row in found.rows), *(0.0 for _ in found.titles)]
    return ranked(found, np.array(counts, np.float32), "popular", history, history.seconds)


def parts_as_items(parts: Sequence[int | str], catalog: Catalog) -> list[str | TitledItem]:
    """Return rows and free titles as a request names them."""
    return [TitledItem(part) if isinstance(part, str) else catalog.item_ids[part] for part in parts]
