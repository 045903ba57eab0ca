"""Users' histories: append, read, list, forget."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from service.errors import InvalidInput, UnknownName
from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.schemas.base import MAX_ID
from service.http.schemas.users import AppendAnswer, AppendRequest, ForgetAnswer, UserAnswer, UserList
from service.stores.base import Event

router = APIRouter(tags=["users"])

MAX_OFFSET = 10_000

UserPath = Annotated[str, Path(min_length=1, max_length=MAX_ID)]


class UsersPage(BaseModel):
    """The query of the list of users; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(default="", max_length=200, description="Keep ids that contain it.")
    limit: int = Field(default=20, ge=1, le=200, description="Entries of a page.")
    after: str | None = Field(
        default=None, min_length=1, max_length=2000, description="Go on there; `next` of the page before."
    )
    offset: int = Field(
        default=0, ge=0, le=MAX_OFFSET, description="Entries to pass over; `after` reaches further and costs less."
    )


@router.get("/users", responses=answers(UserList, 422, 429, 503))
@opened_by(Right.API)
async def users(request: Request, page: Annotated[UsersPage, Query()]) -> Response:
    """List stored users, the most recently active first; `query` keeps ids that contain it. A search that takes long
    ends with a short or empty page whose `next` goes on with it."""
    found = await service_of(request).store.users(page.query, page.limit, page.offset, page.after)
    return json_answer({"items": [row._asdict() for row in found.rows], "next": found.next})


@router.post(
    "/users/{user_id:id}/events",
    responses=answers(AppendAnswer, 400, 404, 409, 413, 422, 429, 503),
    openapi_extra=takes(AppendRequest),
)
@opened_by(Right.API)
async def append(request: Request, user_id: UserPath) -> Response:
    """Append events to a user's history; the answer means that the store has acknowledged them."""
    service = service_of(request)
    body = await read_body(request, AppendRequest)
    catalog = service.loaded().catalog
    now = time.time()
    _refuse_the_future(body, now, service.settings.max_event_ahead_seconds)
    events = [
        Event(event.item_id, now if event.timestamp is None else event.timestamp, event.event_id)
        for event in body.events
    ]
    appended = await service.store.append(user_id, events)
    unknown = dict.fromkeys(event.item_id for event in events if catalog.row(event.item_id) is None)
    return json_answer({"user_id": user_id, **appended._asdict(), "unknown_items": list(unknown)})


@router.get("/users/{user_id:id}", responses=answers(UserAnswer, 404, 422, 503))
@opened_by(Right.API)
async def user(request: Request, user_id: UserPath) -> Response:
    """Read what is stored of a user, oldest first."""
    service = service_of(request)
    history = await service.store.history(user_id)
    if not history:
        raise UnknownName(f"nothing is stored of user {user_id!r}; GET /users lists who is", code="unknown_user")
    catalog = service.loaded().catalog
    events: list[dict[str, Any]] = []
    for event in history:
        row = catalog.row(event.item_id)
        events.append({**event._asdict(), "title": None if row is None else catalog.titles[row]})
    return json_answer({"user_id": user_id, "events": events})


@router.delete("/users/{user_id:id}", responses=answers(ForgetAnswer, 400, 404, 422, 429, 503))
@opened_by(Right.API)
async def forget(request: Request, user_id: UserPath) -> Response:
    """Delete everything stored of a user; nothing to delete is no error."""
    deleted = await service_of(request).store.forget(user_id)
    return json_answer({"user_id": user_id, "deleted": deleted})


def _refuse_the_future(body: AppendRequest, now: float, ahead_s: int) -> None:
    """Events that seem to come later than what happens next would push it out of the history."""
    for place, event in enumerate(body.events):
        if event.timestamp is not None and event.timestamp > now + ahead_s:
            field = f"events.{place}.timestamp"
            raise InvalidInput(
                f"{field} is {event.timestamp:.0f}, {event.timestamp - now:.0f} s ahead of this service's clock, and "
                f"at most {ahead_s} s (ANYO_MAX_EVENT_AHEAD_SECONDS) are allowed; it is in Unix seconds, which are UTC",
                field=field,
                code="timestamp_ahead",
            )
