"""Queries to a recommender: plain data, already checked. `service/http/schemas` makes it from request bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from index.filters.language import Filter, every, in_categories


@dataclass(frozen=True, slots=True)
class TitledItem:
    """An item that is known by its title alone, for models that read text."""

    title: str


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A history: item ids and titles, oldest first. The stored history of `user_id`, if set, comes before `history`."""

    history: Sequence[str | TitledItem] = ()
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecommendQuery(HistoryQuery):
    """Request for recommendations: history, number of items, and exclusions. `categories` keeps items in at least one
    of them, `filter` those that pass it."""

    k: int = 10
    exclude_seen: bool = True
    exclude: Sequence[str] = ()
    categories: Sequence[str] = ()
    filter: Filter | None = None

    @property
    def wanted(self) -> Filter | None:
        """Which items may be in the answer, of `categories` and `filter` together; None: all."""
        asked = [in_categories(self.categories)] if self.categories else []
        parts = asked if self.filter is None else [*asked, self.filter]
        return every(parts) if parts else None


@dataclass(frozen=True, slots=True)
class RankQuery(HistoryQuery):
    """For whom to order which items, ids and titles, of those that pass `filter`. `whole`: what is stored of the user
    is in `history` already."""

    candidates: Sequence[str | TitledItem] = ()
    whole: bool = False
    filter: Filter | None = None


@dataclass(frozen=True, slots=True)
class GenerativeQuery(RecommendQuery):
    """The same for a generative artifact; None takes what the artifact was evaluated with."""

    beams: int | None = None
    max_new_tokens: int | None = None
