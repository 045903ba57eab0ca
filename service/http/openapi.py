"""The OpenAPI description: an example for every body and every answer, and the one shape of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http.field_texts import FIELDS
from service.http.rights import OPEN_RIGHTS, Right, right_of
from service.http.schemas import (
    ActivateAnswer,
    Answer,
    AppendAnswer,
    AppendRequest,
    ArtifactList,
    CompareAnswer,
    CompareRequest,
    ErrorAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    FeedbackSummary,
    ForgetAnswer,
    GenerativeAnswer,
    GenerativeRequest,
    Item,
    ItemList,
    LoadAnswer,
    RecommendAnswer,
    RecommendRequest,
    Status,
    TrafficAnswer,
    TrafficRequest,
    UnloadAnswer,
    UserAnswer,
    UserList,
)
from service.lifecycle.lookup import kind_of
from service.service import Service

HISTORY_SHOWN = 3
REF = "#/components/schemas/{model}"
BODIES: tuple[type[BaseModel], ...] = (
    RecommendRequest, GenerativeRequest, CompareRequest, AppendRequest, FeedbackRequest, TrafficRequest,
)  # fmt: skip

MEANING = {
    400: "The body cannot be read, or is not declared as JSON.",
    401: "No key, or one that is not known.",
    403: "A key that does not open this, a host that is not ours, or a page from elsewhere.",
    404: "What is named does not exist.",
    409: "Not possible for this artifact, or against what is stored.",
    413: "The body or the history is too large.",
    415: "The body is in an encoding or a character set that is not read.",
    422: "A field is wrong, or nothing usable is left of the history.",
    429: "The queue is full, or this key sends too fast; see Retry-After.",
    500: "The model failed on this request.",
    503: "Not ready, or the store is away.",
    504: "Not answered within the deadline.",
}

_ITEM = {"item_id": "d-017", "title": "The Lighthouse at Cape Sorrow", "categories": ["mystery"], "popularity": 42}

_DENSE_ANSWER: dict[str, Any] = {
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
}
_WRITTEN_ANSWER: dict[str, Any] = {
    "request_id": "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d",
    "items": [
        {"rank": 1, "item_id": "d-018", "title": "The Lighthouse at Cape Wrath", "score": -0.41},
        {"rank": 2, "item_id": "d-240", "title": "Fog over the Harbour", "score": -0.77},
    ],
    "artifact": {"name": "genre-demo", "version": "b41c09d7aa52", "recipe": "genre"},
    "timings_ms": {"assemble": 0.2, "queue": 0.3, "prefill": 9.1, "decode": 81.5, "ground": 0.1, "search": 0.1,
                   "total": 92.4},
    "source": "model",
    "ignored_items": [],
    "degraded": [],
    "generated": [
        {"text": "The Lighthouse at Cape Wrath", "code": None, "item_id": "d-018", "distance": 0.0, "valid": True},
        {"text": "Fog over the Harbour", "code": None, "item_id": "d-240", "distance": 0.0, "valid": True},
    ],
    "tokens": {"prompt": 64, "new": 36},
    "beams": 4,
    "filled": 0,
}  # fmt: skip

EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    RecommendRequest: {"history": ["d-004", "d-211", "d-017"], "k": 3, "exclude": ["d-030"], "categories": ["mystery"]},
    AppendRequest: {"events": [{"item_id": "d-017", "event_id": "click-8812", "timestamp": 1750000000}]},
    GenerativeRequest: {"history": ["d-004", "d-211", "d-017"], "k": 3, "recipe": "genre", "beams": 4},
    CompareRequest: {"history": ["d-004", "d-211", "d-017"], "k": 3},
    RecommendAnswer: _DENSE_ANSWER,
    GenerativeAnswer: _WRITTEN_ANSWER,
    CompareAnswer: {
        "request_id": _DENSE_ANSWER["request_id"],
        "dense": _DENSE_ANSWER,
        "generative": _WRITTEN_ANSWER,
        "ratio": 12.66,
        "overlap": 1.0,
    },
    Item: _ITEM,
    ItemList: {"items": [_ITEM], "next": 20},
    UserAnswer: {
        "user_id": "u-1",
        "events": [{"item_id": "d-017", "title": _ITEM["title"], "timestamp": 1750000000.0, "event_id": "click-8812"}],
    },
    AppendAnswer: {"user_id": "u-1", "stored": 1, "duplicates": 0, "too_old": 0, "total": 4, "unknown_items": []},
    ForgetAnswer: {"user_id": "u-1", "deleted": 4},
    UserList: {"items": [{"user_id": "u-1", "events": 4, "last_event_at": 1750000000.0}], "next": None},
    ArtifactList: {
        "items": [
            {
                "name": "anyo-demo-tiny",
                "version": "3f9a2c51d0be",
                "recipe": "anyo",
                "kind": "dense",
                "default": True,
                "state": "active",
                "bytes": 41_500_000,
                "own_bytes": 29_100_000,
                "shares": [{"part": "catalog", "bytes": 2_400_000, "artifacts": ["anyo-demo-minilm"]}],
                "reads": ["ids", "text"],
                "items": 2000,
                "dim": 128,
                "writes": None,
                "history_limit": 50,
                "categories": ["mystery", "travel"],
                "examples": [["d-004", "d-211", "d-017"]],
            }
        ],
        "next": None,
        "working": {"name": "anyo-demo-minilm", "step": "checking and warming up anyo-demo-minilm", "seconds": 3.2},
        "bytes": 41_500_000,
        "bytes_limit": 0,
    },
    LoadAnswer: {"name": "anyo-demo-minilm", "version": "8c1d02fa77be", "changed": True, "bytes": 130_000_000},
    UnloadAnswer: {"name": "anyo-demo-minilm", "freed_bytes": 88_500_000, "bytes": 41_500_000},
    ActivateAnswer: {"name": "anyo-demo-minilm", "version": "8c1d02fa77be", "previous": "anyo-demo-tiny"},
    TrafficRequest: {"weights": {"anyo-demo-tiny": 0.9, "anyo-demo-minilm": 0.1}, "shadow": None},
    TrafficAnswer: {
        "default": "anyo-demo-tiny",
        "weights": {},
        "shadow": {
            "artifact": "anyo-demo-minilm",
            "compared": 1000,
            "dropped": 12,
            "failed": 0,
            "overlap": 0.62,
            "served_ms": 7.4,
            "shadow_ms": 21.9,
        },
    },
    FeedbackRequest: {"request_id": "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d", "item_id": "d-240"},
    FeedbackAnswer: {
        "request_id": "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d",
        "item_id": "d-240",
        "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
        "hit": True,
        "rank": 2,
        "duplicate": False,
    },
    FeedbackSummary: {
        "baseline": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be"},
        "items": [
            {
                "name": "anyo-demo-minilm",
                "version": "8c1d02fa77be",
                "recipe": "anyo",
                "answers": 2000,
                "rated": 120,
                "hits": 96,
                "hit_rate": {"value": 0.8, "low": 0.72, "high": 0.862},
                "taken_rate": {"value": 0.048, "low": 0.0395, "high": 0.0583},
                "minus_baseline": {"hit_rate": {"value": 0.05, "low": -0.04, "high": 0.13}, "taken_rate": None},
            }
        ],
        "next": None,
    },
    Status: {"status": "ready"},
}


REQUEST_ID = "5b0c9f5e8d0f4a1b9c3d2e1f0a9b8c7d"
ERRORS: dict[int, tuple[str, str, str | None]] = {
    400: ("not_json", "the body is not JSON: EOF while parsing an object at line 1 column 1", None),
    401: ("unauthorized", "no key was sent; send an API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'", None),
    403: ("forbidden", "this is an API key; artifacts and traffic are changed with an admin key", None),
    404: ("unknown_artifact", "there is no artifact 'other'; loaded are 'anyo-demo-tiny'", "artifact"),
    409: ("cannot_read_text", "history holds the free title 'A new thing', and artifact 'ids-only' reads ids only",
          "history"),
    413: ("too_large", "the body is larger than 1048576 bytes (ANYO_MAX_BODY_BYTES)", None),
    415: ("unsupported_media", "the body's charset is 'utf-16'; send JSON in UTF-8",
          None),
    422: ("invalid_input", "k: Input should be less than or equal to 1000; given: 5000", "k"),
    429: ("overloaded", "the queue is full (65530 of 65536 positions are queued)", None),
    500: ("internal_error", "an error in the service; its log has the request_id", None),
    503: ("not_ready", "the service is shutting down", None),
    504: ("deadline_exceeded", "the request was not answered within its deadline", None),
}  # fmt: skip
"""For each status one error that really comes with it: code, message, field."""


def error_example(status: int) -> dict[str, Any]:
    """Return the example of an error's body."""
    code, message, field = ERRORS[status]
    named = {} if field is None else {"field": field}
    return {"error": {"code": code, "message": message, "request_id": REQUEST_ID, **named}}


TAGS = {
    "recommend": "Recommend items by looking them up.",
    "generative": "Recommend items by writing them, and compare both ways.",
    "users": "Users' stored histories: append, read, list, forget.",
    "items": "The catalog of an artifact.",
    "feedback": "What was taken after an answer, and what that says of the artifacts.",
    "artifacts": "What is loaded, loading and unloading, and which artifact answers what.",
    "operations": "Probes, metrics, and the page for people.",
}

EVENT = {
    "type": "object",
    "description": "One server-sent event; `data` is JSON: a step, the whole answer, or an error.",
    "required": ["event", "data"],
    "properties": {"event": {"enum": ["step", "answer", "error"]}, "data": {"type": "string"}},
}
EVENTS = 'event: step\ndata: {"step":1,"text":"The"}\n\nevent: answer\ndata: {"request_id": …}\n\n'
GATED = (401, 403, 429)  # what the gate may answer, before a route is asked


def answers(model: type[Answer], *errors: int, gated: bool = True) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: 200 with its example, and the errors it may give."""
    described: dict[int | str, dict[str, Any]] = {
        200: {"model": model, "content": {"application/json": {"example": EXAMPLES[model]}}}
    }
    for status in sorted({500, *errors, *((415,) if 400 in errors else ()), *(GATED if gated else ())}):
        described[status] = {
            "model": ErrorAnswer,
            "description": MEANING[status],
            "content": {"application/json": {"example": error_example(status)}},
        }
    return described


def shows(kind: str, description: str) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route whose 200 is no JSON."""
    described: dict[int | str, dict[str, Any]] = {
        status: {
            "model": ErrorAnswer,
            "description": MEANING[status],
            "content": {"application/json": {"example": error_example(status)}},
        }
        for status in (422, 500)
    }
    described[200] = {"description": description, "content": {kind: {"schema": {"type": "string"}}}}
    return described


def streams(described: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Add to the `responses` of a route that its 200 may also be a stream of events."""
    described[200]["content"]["text/event-stream"] = {"schema": EVENT, "example": EVENTS}
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
            schema["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
            _describe_fields(schema)
            _whole_examples(schema)
            _describe_keys(schema, app.state.routes)
            app.openapi_schema = schema
        _fit_examples(app.openapi_schema, app.state.service)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _describe_fields(schema: dict[str, Any]) -> None:
    """Describe the fields that have no description of their own."""
    for model in schema["components"]["schemas"].values():
        for name, field in model.get("properties", {}).items():
            if "description" not in field and name in FIELDS:
                field["description"] = FIELDS[name]


def _whole_examples(schema: dict[str, Any]) -> None:
    """Put in the examples of answers again: the framework leaves out what is null, and then they do not fit."""
    whole = {model.__name__: example for model, example in EXAMPLES.items()}
    for operations in schema["paths"].values():
        for operation in operations.values():
            content = operation["responses"]["200"].get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name in whole:
                content["example"] = whole[name]


def _fit_examples(schema: dict[str, Any], service: Service) -> None:
    """Let the examples of requests name items and artifacts that are loaded, so that they can be sent as they are."""
    loaded = list(service.recommenders.values())
    if not loaded:
        return
    parts = service.loaded().parts
    golden = [item for case in parts.golden[:1] for item in case.history if isinstance(item, str)]
    history = golden[-HISTORY_SHOWN:] or list(parts.catalog.item_ids[:1])
    row = parts.catalog.row(history[-1])
    categories = list(parts.catalog.categories[row or 0])[:1]
    recipes = [each.parts.recipe for each in loaded if kind_of(each) == "generative"]
    fitting: dict[type[BaseModel], dict[str, Any]] = {
        RecommendRequest: {"history": history, "k": 3, "exclude": history[:1], "categories": categories},
        GenerativeRequest: {"history": history, "k": 3, **({"recipe": recipes[0]} if recipes else {})},
        AppendRequest: {"events": [{**EXAMPLES[AppendRequest]["events"][0], "item_id": history[-1]}]},
        TrafficRequest: {"weights": {parts.name: 1.0} if kind_of(loaded[0]) == "dense" else {}, "shadow": None},
        FeedbackRequest: {**EXAMPLES[FeedbackRequest], "item_id": history[-1]},
    }
    fitting[CompareRequest] = {"history": history, "k": 3}
    by_name = {model.__name__: example for model, example in fitting.items()}
    for operations in schema["paths"].values():
        for operation in operations.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
            if name in by_name:
                content["example"] = by_name[name]


def _describe_keys(schema: dict[str, Any], routes: Sequence[Any]) -> None:
    """Name the two headers that carry a key, and which routes take one; without configured API keys none is needed."""
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "api_key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    rights = {(route.path_format, method.lower()): right_of(route) for route in routes for method in route.methods}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            right = rights[path, method]
            keys: list[dict[str, list[str]]] = [{"bearer": []}, {"api_key": []}]
            operation["security"] = [] if right in OPEN_RIGHTS else keys if right is Right.ADMIN else [{}, *keys]
