"""The OpenAPI description: an example for every body and every answer, and the one shape of errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.http import schemas
from service.http.rights import OPEN_RIGHTS, Right, right_of
from service.http.schemas import (
    Answer,
    AppendRequest,
    BatchRequest,
    Body,
    CompareRequest,
    ErrorAnswer,
    FeedbackRequest,
    GenerativeRequest,
    ItemBody,
    ItemLine,
    ItemPatch,
    RankRequest,
    RecommendRequest,
    TrafficRequest,
)
from service.http.schemas.errors import MEANING, error_example
from service.http.schemas.field_texts import FIELDS
from service.service import Service

HISTORY_SHOWN = 3
LINES = "application/x-ndjson"
REF = "#/components/schemas/{model}"
BODIES: tuple[type[BaseModel], ...] = (
    RecommendRequest, BatchRequest, RankRequest, GenerativeRequest, CompareRequest, AppendRequest, FeedbackRequest,
    TrafficRequest, ItemBody, ItemPatch, ItemLine,
)  # fmt: skip

EXAMPLES: dict[type[BaseModel], dict[str, Any]] = {
    model: model.example for model in (getattr(schemas, name) for name in schemas.__all__) if "example" in vars(model)
}

TAGS = {
    "recommend": "Recommend items by looking them up, and order given ones.",
    "generative": "Recommend items by writing them, and compare both ways.",
    "users": "Users' stored histories: append, read, list, forget.",
    "items": "The catalog: look up, add, change, hide and delete items.",
    "feedback": "What was taken after an answer, and what that says of the artifacts.",
    "artifacts": "What is loaded, loading and unloading, and which artifact answers what.",
    "operations": "Probes, metrics, and the pages for people.",
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
        200: {"model": model, "content": {"application/json": {"example": model.example}}}
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


def takes(model: type[Body]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads `model` from the body itself."""
    content = {"schema": {"$ref": REF.format(model=model.__name__)}, "example": model.example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def takes_lines(model: type[Body]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads JSON lines, a `model` each."""
    schema = {"type": "string", "description": f"JSON lines, each a {model.__name__}."}
    example = orjson.dumps(model.example).decode() + "\n"
    return {"requestBody": {"required": True, "content": {LINES: {"schema": schema, "example": example}}}}


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
    fitting_filter = {"filter": {"attribute": "categories", "any_of": categories}} if categories else {}
    recipes = [each.parts.recipe for each in loaded if each.kind == "generative"]
    fitting: dict[type[BaseModel], dict[str, Any]] = {
        RecommendRequest: {
            "history": history,
            "k": 3,
            "exclude": history[:1],
            "categories": categories,
            **fitting_filter,
            "fields": ["categories"],
        },
        BatchRequest: {"requests": [{"history": history, "k": 3}, {"user_id": "anna", "k": 3}]},
        GenerativeRequest: {"history": history, "k": 3, **({"recipe": recipes[0]} if recipes else {})},
        RankRequest: {"history": history, "candidates": list(parts.catalog.item_ids[:HISTORY_SHOWN])},
        AppendRequest: {"events": [{**AppendRequest.example["events"][0], "item_id": history[-1]}]},
        TrafficRequest: {"weights": {parts.name: 1.0} if loaded[0].kind == "dense" else {}, "shadow": None},
        FeedbackRequest: {**FeedbackRequest.example, "item_id": history[-1]},
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
