"""Users' histories: append, read, list, forget."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.errors import UnknownName
from service.openapi import answers, takes
from service.routes.common import PageQuery, json_answer, page_of, read_body, service_of
from service.schemas import MAX_ID, AppendAnswer, AppendRequest, ForgetAnswer, UserAnswer, UserList
from service.store import Event

router = APIRouter(tags=["users"])

UserPath = Annotated[str, Path(min_length=1, max_length=MAX_ID)]


@router.get("/users", responses=answers(UserList, 422, 503))
async def users(request: Request, page: PageQuery) -> Response:
    """List stored users, the most recently active first; `query` keeps ids that contain it."""
    rows = await service_of(request).store.users(page.query, page.limit + 1, page.offset)
    shown, following = page_of(rows, page)
    return json_answer({"items": [row._asdict() for row in shown], "next": following})


@router.post(
    "/users/{user_id:id}/events",
    responses=answers(AppendAnswer, 400, 409, 413, 422, 429, 503),
    openapi_extra=takes(AppendRequest),
)
async def append(request: Request, user_id: UserPath) -> Response:
    """Append events to a user's history; the answer means that the store has acknowledged them."""
    service = service_of(request)
    body = await read_body(request, AppendRequest)
    catalog = service.loaded().parts.catalog
    now = time.time()
    events = [
        Event(event.item_id, now if event.timestamp is None else event.timestamp, event.event_id)
        for event in body.events
    ]
    appended = await service.store.append(user_id, events)
    unknown = dict.fromkeys(event.item_id for event in events if catalog.row(event.item_id) is None)
    return json_answer({"user_id": user_id, **appended._asdict(), "unknown_items": list(unknown)})


@router.get("/users/{user_id:id}", responses=answers(UserAnswer, 404, 422, 503))
async def user(request: Request, user_id: UserPath) -> Response:
    """Read what is stored of a user, oldest first."""
    service = service_of(request)
    history = await service.store.history(user_id)
    if not history:
        raise UnknownName(f"nothing is stored of user {user_id!r}; GET /users lists who is", code="unknown_user")
    catalog = service.loaded().parts.catalog
    events: list[dict[str, Any]] = []
    for event in history:
        row = catalog.row(event.item_id)
        events.append({**event._asdict(), "title": None if row is None else catalog.titles[row]})
    return json_answer({"user_id": user_id, "events": events})


@router.delete("/users/{user_id:id}", responses=answers(ForgetAnswer, 422, 429, 503))
async def forget(request: Request, user_id: UserPath) -> Response:
    """Delete everything stored of a user; nothing to delete is no error."""
    deleted = await service_of(request).store.forget(user_id)
    return json_answer({"user_id": user_id, "deleted": deleted})
