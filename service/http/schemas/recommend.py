"""Bodies of `POST /recommend`: a history in, ranked items out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BeforeValidator, FailFast, Field, field_validator

from modeling.text import plain_text
from service.http.schemas.base import MAX_ID, REQUEST_ID, Answer, Body
from service.recommend.requests import RecommendQuery, TitledItem

MAX_HISTORY = 10_000
MAX_EXCLUDE = 10_000
MAX_CATEGORIES = 100
MAX_K = 1000
MAX_TITLE = 2000

UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


def _boolean(value: Any) -> Any:
    """Refuse 0, which equals False and is no JSON boolean."""
    if not isinstance(value, bool):
        raise ValueError("must be a boolean")
    return value


class FreeTitle(Body):
    """An item that is known by its title alone, for models that read text."""

    title: str = Field(min_length=1, max_length=MAX_TITLE, description="free text, e.g. a title not in the catalog")

    @field_validator("title")
    @classmethod
    def _not_blank(cls, title: str) -> str:
        plain = plain_text(title)
        if not plain:
            raise ValueError("the title is blank; write what the item is called")
        return plain


class RecommendRequest(Body):
    """Whom to recommend for, how many, and what to leave out."""

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
    k: int = Field(
        default=10, ge=1, le=MAX_K, description="How many items; fewer come back only if fewer are eligible."
    )
    exclude_seen: bool = Field(default=True, description="Leave out the items of the history.")
    exclude: Annotated[list[str], FailFast()] = Field(
        default_factory=list, max_length=MAX_EXCLUDE, description="More item ids to leave out; unknown ones do nothing."
    )
    categories: Annotated[list[str], FailFast()] = Field(
        default_factory=list, max_length=MAX_CATEGORIES, description="Only items in at least one of these categories."
    )
    artifact: str | None = Field(default=None, description="Name of a loaded artifact; null takes the default one.")
    rerank: None = Field(default=None, description="Not in this version: only null is allowed.")
    explain: Annotated[Literal[False], BeforeValidator(_boolean)] = Field(
        default=False, description="Not in this version: only false is allowed."
    )

    def query(self) -> RecommendQuery:
        """Return what a recommender is asked."""
        return RecommendQuery(
            plain_history(self.history), self.user_id, self.k, self.exclude_seen, self.exclude, self.categories
        )

    example: ClassVar[dict[str, Any]] = {
        "history": ["d-004", "d-211", "d-017"],
        "k": 3,
        "exclude": ["d-030"],
        "categories": ["mystery"],
    }


def plain_history(history: Sequence[str | FreeTitle]) -> Sequence[str | TitledItem]:
    """Return a history without the types of a body."""
    if FreeTitle not in set(map(type, history)):
        return cast("Sequence[str]", history)
    return [TitledItem(item.title) if isinstance(item, FreeTitle) else item for item in history]


class RankedItem(Answer):
    """One recommended item; `score` is the inner product (with source "popular": the popularity count)."""

    rank: int
    item_id: str
    title: str
    score: float


class ArtifactName(Answer):
    """Which artifact answered."""

    name: str
    version: str
    recipe: str


class RecommendAnswer(Answer):
    """Recommended items, best first, and how the answer came about."""

    request_id: str
    items: list[RankedItem]
    artifact: ArtifactName
    timings_ms: dict[str, float]
    source: Literal["model", "cache", "popular"]
    ignored_items: list[str]
    degraded: list[str]

    example: ClassVar[dict[str, Any]] = {
        "request_id": REQUEST_ID,
        "items": [
            {"rank": 1, "item_id": "d-018", "title": "The Lighthouse at Cape Wrath", "score": 0.8125},
            {"rank": 2, "item_id": "d-240", "title": "Fog over the Harbour", "score": 0.7734},
        ],
        "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
        "timings_ms": {"assemble": 0.08, "queue": 0.21, "search": 0.35, "forward": 6.4, "total": 7.3},
        "source": "model",
        "ignored_items": [],
        "degraded": [],
    }
