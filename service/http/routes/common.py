"""Common functions of the routes: the service behind a request, bodies in, bytes out, pydantic's mistakes as our
errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from index.filters.body import FilterBody
from service.errors import AnyoError, InvalidInput, shortened, shown
from service.http.errors import BadRequest, ClientGone
from service.http.middleware import request_info
from service.http.openapi import LINES
from service.http.routes.bodies import check_content_type, decoded, first_mistakes, not_json
from service.http.schemas.base import Body
from service.http.schemas.recommend import DiversityRequest, FreeTitle, RecommendRequest, RerankRequest
from service.http.schemas.users import NewEvent
from service.http.starlette_adapter import JsonAnswer
from service.service import Service

B = TypeVar("B", bound=Body)

INNER_MODELS: dict[str, type[BaseModel]] = {
    "history": FreeTitle, "candidates": FreeTitle, "events": NewEvent, "rerank": RerankRequest,
    "diversity": DiversityRequest, "requests": RecommendRequest, "filter": FilterBody,
}  # fmt: skip
ITEM_LISTS = ("history", "candidates")
UNION_TAGS = {"str", "FreeTitle"}


class Page(BaseModel):
    """The query of a list; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(default="", max_length=200, description="Keep what contains it.")
    limit: int = Field(default=20, ge=1, le=200, description="Entries of a page.")
    offset: int = Field(default=0, ge=0, le=1_000_000_000, description="Entries to pass over; `next` of the last page.")


def service_of(request: Request) -> Service:
    """Return the service that an app was made for."""
    return cast(Service, request.app.state.service)


def json_answer(content: Any) -> Response:
    """Return a 200 with a JSON body."""
    return JsonAnswer(content)


def page_of(rows: Sequence[Any], page: Page) -> tuple[Sequence[Any], int | None]:
    """Cut `limit` from rows of which one more was asked for; return them and the next offset."""
    more = len(rows) > page.limit
    return rows[: page.limit], page.offset + page.limit if more else None


async def read_body(request: Request, model: type[B]) -> B:
    """Read and check a JSON body; raises BadRequest (not JSON), InvalidInput (a field), TooLarge, UnsupportedMedia."""
    declared = encoding = b""
    for name, value in request.scope["headers"]:
        if name == b"content-type":
            declared = value
        elif name == b"content-encoding":
            encoding = value
    if declared != b"application/json":
        check_content_type(declared.decode("latin-1"))
    body = await _whole_body(request)
    if encoding:
        body = decoded(body, encoding.decode("latin-1"), service_of(request).settings.max_body_bytes)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise input_error(first_mistakes(error, body, model), model, body) from None


async def read_lines(request: Request, model: type[B], most: int) -> list[B]:
    """Read and check a body of JSON lines, at most `most`; raises as `read_body`, and names the line."""
    headers = request.headers
    if headers.get("content-type", "").partition(";")[0].strip().lower() != LINES:
        raise BadRequest(f"send JSON lines, with 'content-type: {LINES}'", code="not_json")
    body = await _whole_body(request)
    if encoding := headers.get("content-encoding"):
        body = decoded(body, encoding, service_of(request).settings.max_body_bytes)
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= most:
        raise InvalidInput(f"the body has {len(lines)} lines; 1 to {most} are taken at once", field="body")
    return [_line(model, number, line) for number, line in lines]


def _line(model: type[B], number: int, line: bytes) -> B:
    try:
        return model.model_validate_json(line)
    except ValidationError as error:
        found = input_error(first_mistakes(error, line, model), model, line)
        found.message = f"line {number}: {found.message}; nothing was stored"
        raise found from None


async def _whole_body(request: Request) -> bytes:
    """The body: nearly always one message, which the framework's stream around it takes longer than to be checked."""
    parts: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            request_info(request).client_left = True
            raise ClientGone("the client closed its connection before its body had come")
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def input_error(mistakes: Sequence[Any], model: type[BaseModel] | None = None, body: bytes = b"") -> AnyoError:
    """Return pydantic's mistakes as one error: the first in full, the others counted."""
    mistake = _clearest(mistakes)
    if mistake["type"] == "json_invalid":
        return not_json(body, mistake["ctx"]["error"])
    path = [shortened(str(part)) for part in mistake["loc"] if part not in UNION_TAGS]
    field = ".".join(path) or "body"
    others = len({tuple(other["loc"][:2]) for other in mistakes}) - 1
    more = f" (and {others} more {'mistake' if others == 1 else 'mistakes'})" if others else ""
    return InvalidInput(_sentence(mistake, path, model) + more, field=field)


def _clearest(mistakes: Sequence[Any]) -> Any:
    """Return the first mistake; of an entry that fits neither form of a union, the one about the form it resembles."""
    first = mistakes[0]
    if "str" in first["loc"] and isinstance(first["input"], dict):
        place = first["loc"][:2]
        return next((m for m in mistakes if m["loc"][:2] == place and "FreeTitle" in m["loc"]), first)
    return first


def _sentence(mistake: Any, path: list[str], model: type[BaseModel] | None) -> str:
    kind, given = mistake["type"], shown(mistake["input"])
    name = path[-1] if path else "body"
    if kind == "extra_forbidden":
        owner = model if len(path) == 1 else INNER_MODELS.get(path[0])
        known = f"; known are {', '.join(owner.model_fields)}" if owner is not None else ""
        return f"unknown field {shown(name)}{known}"
    if kind == "missing":
        return f"field {shown('.'.join(path))} is missing"
    if path and path[0] in ITEM_LISTS and len(path) == 2 and kind in (
        "string_type", "model_type", "model_attributes_type"
    ):  # fmt: skip
        what = "an item of a history" if path[0] == "history" else "a candidate"
        return f'{".".join(path)} is {given}; {what} is an id (a string) or {{"title": "free text"}}'
    message = mistake["msg"].removeprefix("Value error, ")
    if model is not None and kind in ("none_required", "literal_error") and name in model.model_fields:
        message = (model.model_fields[name].description or message).rstrip(".")
    return f"{'.'.join(path) or 'body'}: {message}; given: {given}"
