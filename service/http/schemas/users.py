"""Bodies of users' stored histories."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field

from service.http.schemas.base import MAX_ID, Answer, Body
from service.http.schemas.items import Item

MAX_EVENTS = 500
LATEST_TIMESTAMP = 253_402_300_799.0  # the end of the year 9999


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
        description="Unix seconds, not ahead of the service's clock; null means now. Histories are ordered by it.",
    )


class AppendRequest(Body):
    """Events to append to a user's history; all are stored or none."""

    events: Annotated[list[NewEvent], FailFast()] = Field(min_length=1, max_length=MAX_EVENTS)

    example: ClassVar[dict[str, Any]] = {
        "events": [{"item_id": "d-017", "event_id": "click-8812", "timestamp": 1750000000}]
    }


class StoredEvent(Answer):
    """An event of a user; `title` is null where the item is not in the catalog."""

    item_id: str
    title: str | None
    timestamp: float
    event_id: str | None


class UserAnswer(Answer):
    """Stored history of a user, oldest first."""

    user_id: str
    events: list[StoredEvent]

    example: ClassVar[dict[str, Any]] = {
        "user_id": "u-1",
        "events": [
            {"item_id": "d-017", "title": Item.example["title"], "timestamp": 1750000000.0, "event_id": "click-8812"}
        ],
    }


class AppendAnswer(Answer):
    """Result of an append: each event is counted in `stored` (a read shows it), `duplicates` or `too_old`. Items that
    are not in the catalog are stored too, and listed in `unknown_items`."""

    user_id: str
    stored: int
    duplicates: int
    too_old: int = Field(description="Events that were older than all that is kept of the user, and are not kept.")
    total: int
    unknown_items: list[str]

    example: ClassVar[dict[str, Any]] = {
        "user_id": "u-1",
        "stored": 1,
        "duplicates": 0,
        "too_old": 0,
        "total": 4,
        "unknown_items": [],
    }


class ForgetAnswer(Answer):
    """Number of deleted events."""

    user_id: str
    deleted: int

    example: ClassVar[dict[str, Any]] = {"user_id": "u-1", "deleted": 4}


class UserRow(Answer):
    """A user in the list."""

    user_id: str
    events: int
    last_event_at: float


class UserList(Answer):
    """A page of users, the most recently active first."""

    items: list[UserRow]
    next: str | None = Field(description="What `after` of the next page is; null at the end.")

    example: ClassVar[dict[str, Any]] = {
        "items": [{"user_id": "u-1", "events": 4, "last_event_at": 1750000000.0}],
        "next": None,
    }
