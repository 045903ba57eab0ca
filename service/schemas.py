"""The bodies of the API: what is read from a request and what an answer looks like. Unknown fields are
refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_HISTORY = 10_000
MAX_EXCLUDE = 10_000
MAX_CATEGORIES = 100
MAX_EVENTS = 500
MAX_K = 1000
MAX_ID = 256
MAX_TITLE = 2000
LATEST_TIMESTAMP = 253_402_300_799.0  # the end of the year 9999

UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class Body(BaseModel):
    """Base of every request body: JSON's own types (no "5" for 5), no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FreeTitle(Body):
    """An item that is known by its title alone, for models that read text."""

    title: str = Field(min_length=1, max_length=MAX_TITLE, description="free text, e.g. a title not in the catalog")

    @field_validator("title")
    @classmethod
    def _not_blank(cls, title: str) -> str:
        if not title.strip():
            raise ValueError("the title is blank; write what the item is called")
        return title.strip()


class RecommendRequest(Body):
    """Whom to recommend for, how many, and what to leave out."""

    history: list[str | FreeTitle] = Field(
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
    exclude: list[str] = Field(
        default_factory=list, max_length=MAX_EXCLUDE, description="More item ids to leave out; unknown ones do nothing."
    )
    categories: list[str] = Field(
        default_factory=list, max_length=MAX_CATEGORIES, description="Only items in at least one of these categories."
    )
    artifact: str | None = Field(default=None, description="Name of a loaded artifact; null takes the default one.")
    rerank: None = Field(default=None, description="Not in this version: only null is allowed.")
    explain: Literal[False] = Field(default=False, description="Not in this version: only false is allowed.")


class NewEvent(Body):
    """A user took an item."""

    item_id: str = Field(min_length=1, max_length=MAX_ID)
    event_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ID,
        description="Any id of your own; sent again, the event is not stored twice.",
    )
    timestamp: float | None = Field(
        default=None,
        ge=0,
        le=LATEST_TIMESTAMP,
        description="Unix seconds; null means now. Histories are ordered by it.",
    )


class AppendRequest(Body):
    """Events to append to a user's history; all are stored or none."""

    events: list[NewEvent] = Field(min_length=1, max_length=MAX_EVENTS)


class Answer(BaseModel):
    """Base of every answer; only documentation, since answers are written as bytes directly."""

    model_config = ConfigDict(extra="forbid")


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


class Item(Answer):
    """An item of the catalog."""

    item_id: str
    title: str
    categories: list[str]
    popularity: int


class ItemList(Answer):
    """A page of items; `next` is the offset of the next page, or null."""

    items: list[Item]
    next: int | None


class StoredEvent(Answer):
    """An event of a user; `title` is null where the item is not in the catalog."""

    item_id: str
    title: str | None
    timestamp: float
    event_id: str | None


class UserAnswer(Answer):
    """What is stored of a user, oldest first."""

    user_id: str
    events: list[StoredEvent]


class AppendAnswer(Answer):
    """What an append did. Items that are not in the catalog are stored too, and listed in `unknown_items`."""

    user_id: str
    stored: int
    duplicates: int
    total: int
    unknown_items: list[str]


class ForgetAnswer(Answer):
    """How many events were deleted."""

    user_id: str
    deleted: int


class UserRow(Answer):
    """A user in the list."""

    user_id: str
    events: int
    last_event_at: float


class UserList(Answer):
    """A page of users, the most recently active first."""

    items: list[UserRow]
    next: int | None


class ArtifactRow(Answer):
    """A loaded artifact, what it can do, and histories to try it with."""

    name: str
    version: str
    recipe: str
    default: bool
    reads: list[str]
    items: int
    dim: int
    history_limit: int
    categories: list[str]
    examples: list[list[str]]


class ArtifactList(Answer):
    """The loaded artifacts."""

    items: list[ArtifactRow]
    next: int | None


class Status(Answer):
    """A probe's answer."""

    status: str


class ErrorDetail(Answer):
    """`code` is stable and meant for programs; `message` says what was given and what is allowed."""

    code: str
    message: str
    request_id: str
    field: str | None = None


class ErrorAnswer(Answer):
    """The one shape of every error."""

    error: ErrorDetail
