"""What a recommender is asked: plain data, already checked. `service/http/schemas` makes it from request bodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TitledItem:
    """An item that is known by its title alone, for models that read text."""

    title: str


@dataclass(frozen=True, slots=True)
class RecommendQuery:
    """Whom to recommend for, how many items, and which to leave out.

    `history` holds item ids and titles, oldest first; a stored history (`user_id`) comes before it. `categories` keeps
    only items in at least one of them.
    """

    history: Sequence[str | TitledItem] = ()
    user_id: str | None = None
    k: int = 10
    exclude_seen: bool = True
    exclude: Sequence[str] = ()
    categories: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class GenerativeQuery(RecommendQuery):
    """The same for a generative artifact; None takes what the artifact was evaluated with."""

    beams: int | None = None
    max_new_tokens: int | None = None
