"""The list of users in pages: each request looks at a bounded number of users for a bounded time, then says where it
goes on.

A search for what no id contains would otherwise walk through all users. A page that runs out of time is shorter than
asked for, or empty, and `next` is not null: the search goes on there.
"""

from __future__ import annotations

import base64
import math
import time
from typing import NamedTuple, Protocol

import orjson

from service.errors import InvalidInput


class UserSummary(NamedTuple):
    """A user in a list: how many events are kept, and when the newest happened (Unix seconds)."""

    user_id: str
    events: int
    last_event_at: float


class Place(NamedTuple):
    """A place in the list: behind this user."""

    last_event_at: float
    user_id: str


class UserPart(NamedTuple):
    """The users that were found in a part of the list, and where that part ended (None: with the list)."""

    rows: list[UserSummary]
    end: Place | None


class UserPage(NamedTuple):
    """A page, and the cursor of the next one (None: there is none)."""

    rows: list[UserSummary]
    next: str | None


class Lists(Protocol):
    """The part of a store that is used here."""

    async def users_part(self, query: str, after: Place | None, most: int) -> UserPart:
        """Look at a bounded number of users, newest first, and return at most `most` whose id contains `query`."""


async def list_users(
    store: Lists, query: str, limit: int, offset: int, cursor: str | None, budget_s: float
) -> UserPage:
    """Return a page of users whose id contains `query`, the most recently active first; raises InvalidInput.

    `cursor` is `next` of the page before. `offset` users are passed over. After `budget_s` no further part is read.
    """
    end = time.monotonic() + budget_s
    place, skip = (None, 0) if cursor is None else _read(cursor)
    skip += offset
    found: list[UserSummary] = []
    while True:
        # One more than is shown tells whether there are more.
        part = await store.users_part(query, place, skip + limit + 1 - len(found))
        found += part.rows[skip:]
        skip = max(0, skip - len(part.rows))
        place = part.end
        if len(found) > limit:
            last = found[limit - 1]
            return UserPage(found[:limit], _write(Place(last.last_event_at, last.user_id), 0))
        if place is None:
            return UserPage(found, None)
        if time.monotonic() >= end:
            return UserPage(found, _write(place, skip))


def _write(place: Place, skip: int) -> str:
    content = orjson.dumps([place.last_event_at, place.user_id, skip])
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _read(cursor: str) -> tuple[Place, int]:
    try:
        content = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        at, user_id, skip = content
        if not (isinstance(at, float) and math.isfinite(at) and isinstance(user_id, str) and type(skip) is int):
            raise ValueError(cursor)
        if not 0 <= skip <= 2**31:
            raise ValueError(cursor)
    except (ValueError, TypeError):
        raise InvalidInput(
            f"after: {cursor[:80]!r} is no cursor; it is the `next` of the page before", field="after"
        ) from None
    return Place(at, user_id), skip
