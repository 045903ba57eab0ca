"""The OpenAPI description: an example for every body and every answer, and the one shape of errors."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.schemas import (
    Answer,
    AppendAnswer,
    AppendRequest,
    ArtifactList,
    ErrorAnswer,
    ForgetAnswer,
    Item,
    ItemList,
    RecommendAnswer,
    RecommendRequest,
    Status,
    UserAnswer,
    UserList,
)

REF = "#/components/schemas/{model}"
BODIES: tuple[type[BaseModel], ...] = (RecommendRequest, AppendRequest)

MEANING = {
    400: "The body cannot be read.",
    404: "What is named does not exist.",
    409: "Not possible for this artifact, or against what is stored.",
    413: "The body or the history is too large.",
    422: "A field is wrong, or nothing usable is left of the history.",
    429: "The queue is full; see Retry-After.",
    500: "The model failed on this request.",
    503: "Not ready, or the store is away.",
    504: "Not answered within the deadline.",
}

_ITEM = {"item_id": "d-017", "title": "The Lighthouse at Cape Sorrow", "categories": ["mystery"], "popularity": 42}

EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    RecommendRequest: {"history": ["d-004", "d-211", "d-017"], "k": 3, "exclude": ["d-030"], "categories": ["mystery"]},
    AppendRequest: {"events": [{"item_id": "d-017", "event_id": "click-8812", "timestamp": 1790000000}]},
    RecommendAnswer: {
        "request_id": "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d",
        "items": [
            {"rank": 1, "item_id": "d-018", "title": "The Lighthouse at Cape Wrath", "score": 0.8125},
            {"rank": 2, "item_id": "d-240", "title": "Fog over the Harbour", "score": 0.7734},
        ],
        "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
        "timings_ms": {"assemble": 0.08, "queue": 0.21, "search": 0.35, "forward": 6.4, "total": 7.3},
        "source": "model",
        "ignored_items": [],
        "degraded": [],
    },
    Item: _ITEM,
    ItemList: {"items": [_ITEM], "next": 20},
    UserAnswer: {
        "user_id": "u-1",
        "events": [{"item_id": "d-017", "title": _ITEM["title"], "timestamp": 1790000000.0, "event_id": "click-8812"}],
    },
    AppendAnswer: {"user_id": "u-1", "stored": 1, "duplicates": 0, "total": 4, "unknown_items": []},
    ForgetAnswer: {"user_id": "u-1", "deleted": 4},
    UserList: {"items": [{"user_id": "u-1", "events": 4, "last_event_at": 1790000000.0}], "next": None},
    ArtifactList: {
        "items": [
            {
                "name": "anyo-demo-tiny",
                "version": "3f9a2c51d0be",
                "recipe": "anyo",
                "default": True,
                "reads": ["ids", "text"],
                "items": 2000,
                "dim": 128,
                "history_limit": 50,
                "categories": ["mystery", "travel"],
                "examples": [["d-004", "d-211", "d-017"]],
            }
        ],
        "next": None,
    },
    Status: {"status": "ready"},
    ErrorAnswer: {
        "error": {
            "code": "no_usable_history",
            "message": "none of the items in history is in the catalog of 2000 items: 'x-1'; GET /items lists …",
            "field": "history",
            "request_id": "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d",
        }
    },
}


def answers(model: type[Answer], *errors: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: 200 with its example, and the errors it may give."""
    described: dict[int | str, dict[str, Any]] = {
        200: {"model": model, "content": {"application/json": {"example": EXAMPLES[model]}}}
    }
    for status in sorted({500, *errors}):
        described[status] = {
            "model": ErrorAnswer,
            "description": MEANING[status],
            "content": {"application/json": {"example": EXAMPLES[ErrorAnswer]}},
        }
    return described


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads `model` from the body itself."""
    content = {"schema": {"$ref": REF.format(model=model.__name__)}, "example": EXAMPLES[model]}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def describe(app: FastAPI) -> None:
    """Make `/openapi.json` of an app complete: bodies that the routes read themselves are added to its schemas."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, definitions = models_json_schema([(model, "validation") for model in BODIES], ref_template=REF)
            schema["components"]["schemas"].update(definitions["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def project_version() -> str:
    """Return the version of the installed project, or that of a working copy that is not installed."""
    try:
        return version("anyo")
    except PackageNotFoundError:
        return "0+working-copy"
