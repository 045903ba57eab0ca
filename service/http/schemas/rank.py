"""Bodies of `POST /rank`: a history and candidates in, the candidates in order out."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field

from index.filters.body import FilterField
from service.http.schemas.base import MAX_ID, REQUEST_ID, Answer, Body
from service.http.schemas.recommend import (
    ATTRIBUTES_ASKED,
    CATEGORIES_ASKED,
    FIELDS,
    MAX_CANDIDATES,
    MAX_FIELDS,
    MAX_HISTORY,
    AnsweredAttributes,
    FieldNames,
    FreeTitle,
    RankedAnswer,
    UserId,
    plain_history,
)
from service.recommend.requests import RankQuery


class RankRequest(Body):
    """For whom to order which candidates, and who scores them."""

    candidates: Annotated[list[str | FreeTitle], FailFast()] = Field(
        min_length=1,
        max_length=MAX_CANDIDATES,
        description='Items to order, in any order: ids of the catalog, or {"title": …} for free text where the '
        "artifact can score it. Unknown ids are left out and listed in `unknown_candidates`, repeated ones count once. "
        "What a batch of the ranker does not hold is scored in several batches, with the same scores.",
    )
    history: Annotated[list[str | FreeTitle], FailFast()] = Field(
        default_factory=list,
        max_length=MAX_HISTORY,
        description='Items the user took, oldest first: ids of the catalog, or {"title": …} for free text. '
        "Ids that are not in the catalog are ignored and listed in `ignored_items`.",
    )
    user_id: UserId | None = Field(
        default=None,
        description="A user whose stored history is read; where `history` is given too, it comes after the stored one.",
    )
    filter: FilterField | None = Field(
        default=None,
        description="Only candidates that pass this filter; the others are listed in `filtered_candidates`. A free "
        "title has no attributes.",
    )
    artifact: str | None = Field(
        default=None, description="Name of a loaded artifact that scores candidates; null: the default dense one."
    )
    recipe: str | None = Field(
        default=None, min_length=1, max_length=MAX_ID, description="A recipe of which such an artifact is loaded."
    )
    fields: FieldNames = Field(
        default_factory=list, max_length=MAX_FIELDS, description=FIELDS + " A free title has none."
    )

    def query(self) -> RankQuery:
        """Return what a ranker is asked."""
        wanted = None if self.filter is None else self.filter.plain()
        return RankQuery(plain_history(self.history), self.user_id, plain_history(self.candidates), filter=wanted)

    example: ClassVar[dict[str, Any]] = {
        "history": ["d-004", "d-211", "d-017"],
        "candidates": ["d-240", "d-018", "d-030"],
    }


class RankedCandidate(Answer):
    """A candidate in its place; a free title has no id."""

    rank: int
    item_id: str | None
    title: str
    score: float = Field(
        description="The inner product, or the ranker's own score; with source `popular` the popularity."
    )
    categories: list[str] | None = Field(default=None, description=CATEGORIES_ASKED)
    attributes: AnsweredAttributes | None = Field(default=None, description=ATTRIBUTES_ASKED)


class RankAnswer(RankedAnswer):
    """All candidates that could be ranked, best first, and how they were computed."""

    items: list[RankedCandidate]
    unknown_candidates: list[str]
    repeated_candidates: list[str]
    filtered_candidates: list[str]

    example: ClassVar[dict[str, Any]] = {
        "request_id": REQUEST_ID,
        "items": [
            {"rank": 1, "item_id": "d-018", "title": "The Lighthouse at Cape Wrath", "score": 0.8125},
            {"rank": 2, "item_id": "d-240", "title": "Fog over the Harbour", "score": 0.7734},
            {"rank": 3, "item_id": "d-030", "title": "Bread for Beginners", "score": -0.1172},
        ],
        "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
        "timings_ms": {"assemble": 0.08, "queue": 0.21, "search": 0.02, "forward": 6.4, "total": 7.1},
        "source": "model",
        "ignored_items": [],
        "unknown_candidates": [],
        "repeated_candidates": [],
        "filtered_candidates": [],
        "degraded": [],
    }
