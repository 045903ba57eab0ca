"""Interface of the stores of users' histories.

A store keeps, for every user, the newest events in order of their time (then of arrival). An append that has
returned is as safe as the store can make it: on the disk (SQLite), or acknowledged by Redis, which is on the
disk where Redis runs with `appendfsync always`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from service.stores.user_list import Place, UserPart


class Event(NamedTuple):
    """A user took an item. `event_id`, where given, makes the append idempotent; `timestamp` is Unix seconds."""

    item_id: str
    timestamp: float
    event_id: str | None = None


class Appended(NamedTuple):
    """Result of an append: events that are kept now, events that were there already, events the user has in all, and
    events that were older than all that is kept and are therefore not kept. First, second and last make up all."""

    stored: int
    duplicates: int
    total: int
    too_old: int = 0


class EventConflict(Exception):
    """An event_id was used before for another item; the message names all three."""

    @classmethod
    def between(cls, event_id: str, before: str, now: str) -> EventConflict:
        """Return the conflict of an event_id that was stored with item `before` and is sent with `now`."""
        return cls(
            f"event_id {event_id!r} was stored with item {before!r} and is now sent with {now!r}; use a new "
            "event_id for another event"
        )


class StoreDown(Exception):
    """The store cannot be reached or refuses; known and logged where it arose.

    `maybe_done` says that the operation may nevertheless have been carried out, `retry_s` when to come back.
    """

    def __init__(self, message: str, *, maybe_done: bool, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.maybe_done = maybe_done
        self.retry_s = retry_s


class HistoryStore(Protocol):
    """Operations of a store that the service uses. None of the methods blocks the event loop."""

    async def open(self) -> None:
        """Connect, and create what is missing; raises OSError, StartError or the backend's own error."""

    async def append(self, user_id: str, events: Sequence[Event]) -> Appended:
        """Store all events or none; raises EventConflict. Returning means that the backend acknowledged them."""

    async def history(self, user_id: str) -> list[Event]:
        """Return what is kept of a user, oldest first; empty for an unknown user."""

    async def forget(self, user_id: str) -> int:
        """Delete everything of a user, return how many events that were."""

    async def users_part(self, query: str, after: Place | None, most: int) -> UserPart:
        """Look at a bounded number of users behind `after`, the most recently active first, then by id; return at most
        `most` whose id contains `query`, and where the next part begins."""

    async def close(self) -> None:
        """Finish what was begun and disconnect."""
