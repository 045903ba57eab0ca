"""Changes of the catalog: add, change, hide and delete items, one or many."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.errors import InvalidInput, PreconditionFailed, UnknownName, shown
from service.http.errors import BadRequest
from service.http.middleware import request_info
from service.http.openapi import answers, takes, takes_lines
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, read_lines, service_of
from service.http.schemas.base import MAX_ID
from service.http.schemas.items import (
    MAX_ATTRIBUTES,
    MAX_LINES,
    BulkAnswer,
    ItemBody,
    ItemChange,
    ItemLine,
    ItemPatch,
    content_of,
)
from service.item_stores.base import ItemContent, ItemWrite, StoredItem, Written, never_stored
from service.service import Service

router = APIRouter(tags=["items"])

ItemPath = Annotated[str, Path(min_length=1, max_length=MAX_ID)]
ATTEMPTS = 8  # of a change without If-Match, where others change the same item
STATUSES = (400, 404, 409, 412, 413, 422, 429, 503, 504)
Make = Callable[[ItemContent | None], ItemContent]
ETAG = re.compile(r'(?:W/)?"([0-9]{1,15})"')


@router.put("/items/{item_id:id}", responses=answers(ItemChange, *STATUSES), openapi_extra=takes(ItemBody))
@opened_by(Right.ADMIN)
async def put_item(request: Request, item_id: ItemPath) -> Response:
    """Add an item, or replace all of it. The answer means that it is stored, and found by the next request. `If-Match`
    (a version) and `If-None-Match: *` guard against changes of others."""
    service = service_of(request)
    body = await read_body(request, ItemBody)
    content = content_of(body, _space_of(service, body.artifact, body.vector))
    return await _change(request, service, item_id, lambda before: content)


@router.patch("/items/{item_id:id}", responses=answers(ItemChange, *STATUSES), openapi_extra=takes(ItemPatch))
@opened_by(Right.ADMIN)
async def patch_item(request: Request, item_id: ItemPath) -> Response:
    """Change the given fields of an item."""
    service = service_of(request)
    body = await read_body(request, ItemPatch)
    space = _space_of(service, body.artifact, body.vector)

    def patched(before: ItemContent | None) -> ItemContent:
        if before is None:
            raise _unknown(item_id)
        return _patched(before, body, space)

    return await _change(request, service, item_id, patched)


@router.delete("/items/{item_id:id}", responses=answers(ItemChange, 400, 404, 409, 412, 422, 429, 503, 504))
@opened_by(Right.ADMIN)
async def delete_item(request: Request, item_id: ItemPath) -> Response:
    """Delete an item; one that was deleted before stays so."""
    service = service_of(request)

    def deleted(before: ItemContent | None) -> ItemContent:
        if before is None and item_id not in service.items.records:
            raise _unknown(item_id)
        return ItemContent(state="deleted")

    return await _change(request, service, item_id, deleted)


@router.post("/items", responses=answers(BulkAnswer, *STATUSES), openapi_extra=takes_lines(ItemLine))
@opened_by(Right.ADMIN)
async def post_items(request: Request) -> Response:
    """Add or replace many items: JSON lines, one item each. All lines are checked before the first is stored."""
    service, info = service_of(request), request_info(request)
    lines = await read_lines(request, ItemLine, MAX_LINES)
    writes = [
        ItemWrite(line.item_id, content_of(line, _space_of(service, line.artifact, line.vector)), line.if_version)
        for line in lines
    ]
    written = await service.items.write(writes, info.started + service.settings.deadline_ms / 1000)
    return json_answer({
        "items": [
            {"item_id": one.item.item_id, "version": one.item.version, "outcome": one.outcome} for one in written
        ]
    })  # fmt: skip


# -- steps -----------------------------------------------------------------------------------------------------------


async def _change(request: Request, service: Service, item_id: str, make: Make) -> Response:
    """Store what `make` makes of the content that there is (None: no such item), as the request's conditions allow."""
    deadline = request_info(request).started + service.settings.deadline_ms / 1000
    for _ in range(ATTEMPTS):
        before = await service.items.get(item_id) or never_stored(item_id)
        content = _content_now(service, before)
        wanted = make(content)
        _check_conditions(request, before, exists=content is not None, same=before.version and before.content == wanted)
        (written,) = await service.items.write([ItemWrite(item_id, wanted, before.version)], deadline)
        if written.outcome != "stale":
            return _changed(service, written)
    raise PreconditionFailed(
        f"item {shown(item_id)} was changed by others {ATTEMPTS} times meanwhile; send the change again"
    )


def _content_now(service: Service, stored: StoredItem) -> ItemContent | None:
    """The content of an item: as it is stored, or as it was trained; None where there is no such item."""
    if stored.version:
        return None if stored.content.state == "deleted" else stored.content
    for name in (None, *service.recommenders):
        trained = service.loaded(name).catalog.trained
        if (row := trained.row(stored.item_id)) is not None:
            return ItemContent(trained.titles[row], trained.categories[row], trained.attributes(row))
    return None


def _check_conditions(request: Request, stored: StoredItem, *, exists: bool, same: bool | int) -> None:
    """Raise PreconditionFailed, BadRequest. A change that was carried out already is no reason to refuse it."""
    expected, new = request.headers.get("if-match"), request.headers.get("if-none-match")
    if new not in (None, "*"):
        raise BadRequest(f"If-None-Match is {shown(new)}; it may be * here: store it if there is no such item")
    found = None if expected in (None, "*") else ETAG.fullmatch(expected or "")
    if expected not in (None, "*") and found is None:
        raise BadRequest(f'If-Match is {shown(expected)}; it is * or one version in quotes, as in "3"')
    if same:
        return
    name = shown(stored.item_id)
    if found is not None and int(found[1]) != stored.version:
        raise PreconditionFailed(f"item {name} has version {stored.version}, and If-Match expects {int(found[1])}")
    if expected == "*" and not exists:
        raise PreconditionFailed(f"there is no item {name}, and If-Match expects one")
    if new == "*" and exists:
        raise PreconditionFailed(f"there is an item {name} already, of version {stored.version}")


def _changed(service: Service, written: Written) -> Response:
    item = written.item
    reasons = {
        each.parts.name: each.items.refusals.get(item.item_id) for each in service.recommenders.values()
    }  # fmt: skip
    live = item.content.state == "live"
    answer = json_answer({
        "item_id": item.item_id,
        "version": item.version,
        "state": item.content.state,
        "changed": written.outcome == "changed",
        "artifacts": [
            {"artifact": name, "recommends": live and reason is None, "reason": reason}
            for name, reason in reasons.items()
        ],
    })  # fmt: skip
    answer.headers["ETag"] = f'"{item.version}"'
    return answer


def _space_of(service: Service, name: str | None, vector: Sequence[float] | None) -> str | None:
    """The version of the artifact in whose space a vector is given; raises InvalidInput where it does not fit."""
    if vector is None:
        return None
    parts = service.recommender(name).parts
    if not parts.index.takes_vectors:
        raise InvalidInput(
            f"artifact {parts.name!r} (recipe {parts.recipe!r}) counts interactions: leave vector out",
            field="vector",
        )
    if len(vector) != parts.index.dim:
        raise InvalidInput(
            f"vector has {len(vector)} numbers, and those of artifact {parts.name!r} have {parts.index.dim}",
            field="vector",
        )
    return parts.version


def _patched(before: ItemContent, body: ItemPatch, space: str | None) -> ItemContent:
    given = body.model_fields_set
    attributes = dict(before.attributes)
    for name, value in (body.attributes or {}).items():
        attributes.pop(name, None)
        if value is not None:
            attributes[name] = tuple(value) if isinstance(value, list) else value
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidInput(f"the item would have {len(attributes)} attributes; at most {MAX_ATTRIBUTES} are kept")
    vector = None if body.vector is None else tuple(body.vector)
    return replace(
        before,
        title=body.title or before.title,
        categories=before.categories if body.categories is None else tuple(dict.fromkeys(body.categories)),
        attributes=attributes,
        state=body.state or before.state,
        vector=vector if "vector" in given else before.vector,
        vector_of=space if "vector" in given else before.vector_of,
    )


def _unknown(item_id: str) -> UnknownName:
    return UnknownName(
        f"there is no item {shown(item_id)}; PUT /items/{{item_id}} adds it, GET /items?query=… finds items by title",
        code="unknown_item",
    )
