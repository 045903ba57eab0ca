"""Histories into the store, many users at a time; loaded again, nothing is stored twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from service.bulk.histories import Histories
from service.recommend.base import together
from service.stores.base import Appended, Event, HistoryStore

USERS_AT_ONCE = 500
MOST_EVENTS = 1000  # of one append
Say = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """Users, events stored now, events that were there already, and events older than all that is kept."""

    users: int
    stored: int
    duplicates: int
    too_old: int


async def load(store: HistoryStore, histories: Histories, newest: int, say: Say) -> Loaded:
    """Append the newest events of every user to an open store.

    Args:
        store: where they go.
        histories: whose.
        newest: events of a user that are loaded at most.
        say: is told of the progress.

    Raises:
        StoreDown: the store refuses; load again, what is there is passed over.
        EventConflict: an event_id of such an event was used for another item.
    """
    total, sums = len(histories.users), [0, 0, 0]
    for first in range(0, total, USERS_AT_ONCE):
        users = histories.part(first, USERS_AT_ONCE)
        for done in await together(_one(store, *user, newest) for user in users):
            for appended in done:
                for place, count in enumerate((appended.stored, appended.duplicates, appended.too_old)):
                    sums[place] += count
        say(f"{min(first + USERS_AT_ONCE, total):,} of {total:,} users")
    return Loaded(total, *sums)


async def _one(store: HistoryStore, user: str, items: list[str], seconds: list[float], newest: int) -> list[Appended]:
    seen: dict[tuple[str, float], int] = {}
    events = []
    for item, when in zip(items, seconds, strict=True):
        again = seen[item, when] = seen.get((item, when), -1) + 1  # the same row twice is two events
        events.append(Event(item, when, event_id(item, when, again)))
    events = events[-newest:]
    return [
        await store.append(user, events[first : first + MOST_EVENTS]) for first in range(0, len(events), MOST_EVENTS)
    ]


def event_id(item: str, seconds: float, again: int) -> str:
    """The id of a loaded event of a user: the same row has the same one, whenever it is loaded."""
    return "load:" + hashlib.sha256(f"{seconds!r} {again} {item}".encode()).hexdigest()[:32]
