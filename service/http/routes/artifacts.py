"""Artifacts and traffic: what is loaded, loading and swapping while requests run, the split and the shadow."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.artifacts.memory import SharedBlock, total_bytes
from service.errors import InvalidInput
from service.http.openapi import answers, takes
from service.http.rights import Right, opened_by
from service.http.routes.common import json_answer, read_body, service_of
from service.http.schemas.artifacts import (
    ActivateAnswer,
    ArtifactDetail,
    ArtifactList,
    LoadAnswer,
    TrafficAnswer,
    TrafficRequest,
    UnloadAnswer,
)
from service.http.schemas.base import MAX_ID
from service.lifecycle.lookup import AnyRecommender
from service.lifecycle.registry import FOLDER_NAME
from service.service import Service

router = APIRouter(tags=["artifacts"])
log = structlog.get_logger(__name__)

EXAMPLES_SHOWN = 5
CATEGORIES_SHOWN, ATTRIBUTES_SHOWN = 200, 200

NamePath = Annotated[str, Path(min_length=1, max_length=MAX_ID)]
FolderPath = Annotated[str, Path(pattern=FOLDER_NAME)]


@router.get("/artifacts", responses=answers(ArtifactList, 503))
@opened_by(Right.API)
async def artifacts(request: Request) -> Response:
    """List the loaded artifacts, the default dense one first, with histories to try them with."""
    service = service_of(request)
    default = service.loaded()
    others = [each for each in service.recommenders.values() if each is not default]
    rows = [await _artifact(each, service) for each in (default, *others)]
    working = service.registry.operation
    shown = None
    if working is not None:
        shown = {
            "name": working.name,
            "step": working.step,
            "seconds": round(time.monotonic() - working.since, 3),
        }
    return json_answer({
        "items": rows,
        "next": None,
        "working": shown,
        "bytes": service.registry.bytes(),
        "bytes_limit": service.settings.max_artifact_bytes,
    })  # fmt: skip


@router.get("/artifacts/{name:id}", responses=answers(ArtifactDetail, 404, 422, 503))
@opened_by(Right.API)
async def artifact(request: Request, name: NamePath) -> Response:
    """Describe one loaded artifact: also its data set, its training run and its quality on the validation split."""
    service = service_of(request)
    recommender = service.loaded(name)
    row = await _artifact(recommender, service)
    return json_answer({**row, **asdict(recommender.parts.facts)})


@router.post("/artifacts/{name:id}/load", responses=answers(LoadAnswer, 400, 404, 409, 422, 503))
@opened_by(Right.ADMIN)
async def load(request: Request, name: FolderPath) -> Response:
    """Load an artifact beside what serves, or the version that took its folder's place; answers when it is warm."""
    service = service_of(request)
    service.refuse_during_the_start()
    changed = await service.registry.load(name)
    service.feedback.announce(name)
    log.info("artifact load asked for", name=name, changed=changed)
    version = service.loaded(name).parts.version
    return json_answer({"name": name, "version": version, "changed": changed, "bytes": service.registry.bytes()})


@router.post("/artifacts/{name:id}/unload", responses=answers(UnloadAnswer, 400, 404, 409, 422, 503))
@opened_by(Right.ADMIN)
async def unload(request: Request, name: NamePath) -> Response:
    """Unload an artifact that is neither the default one nor in the traffic; answers when its memory came back."""
    service = service_of(request)
    service.refuse_during_the_start()
    freed = await service.registry.unload(name, in_use=service.traffic.uses)
    log.info("artifact unload asked for", name=name, freed=freed)
    return json_answer({"name": name, "freed_bytes": freed, "bytes": service.registry.bytes()})


@router.post("/artifacts/{name:id}/activate", responses=answers(ActivateAnswer, 400, 404, 422, 503))
@opened_by(Right.ADMIN)
async def activate(request: Request, name: NamePath) -> Response:
    """Let a loaded artifact answer everything of its kind that names none, from the next request on; a dense one ends
    a split."""
    service = service_of(request)
    previous = service.activate(name)
    log.info("artifact activated", name=name, previous=previous)
    version = service.loaded(name).parts.version
    return json_answer({"name": name, "version": version, "previous": previous})


@router.get("/traffic", responses=answers(TrafficAnswer, 503))
@opened_by(Right.API)
async def traffic(request: Request) -> Response:
    """Say which artifacts answer requests that name none, and how the shadow compares."""
    return json_answer(_traffic(service_of(request)))


@router.put(
    "/traffic",
    responses=answers(TrafficAnswer, 400, 404, 413, 422, 503),
    openapi_extra=takes(TrafficRequest),
)
@opened_by(Right.ADMIN)
async def set_traffic(request: Request) -> Response:
    """Set the split and the shadow, both at once, from the next request on."""
    service = service_of(request)
    body = await read_body(request, TrafficRequest)
    default = service.recommender(None).parts.name
    for name in (*body.weights, *([body.shadow] if body.shadow is not None else [])):
        service.recommender(name)  # or 404
    answering = {name for name, weight in body.weights.items() if weight > 0} or {default}
    if body.shadow in answering:
        raise InvalidInput(f"shadow is {body.shadow!r}, which answers already; name another artifact", field="shadow")
    service.traffic.set(body.weights, body.shadow)
    log.info("traffic set", weights=service.traffic.weights, shadow=body.shadow)
    return json_answer(_traffic(service))


def _traffic(service: Service) -> dict[str, Any]:
    default = service.recommender(None).parts.name
    return {"default": default, "weights": service.traffic.weights, "shadow": service.traffic.shown()}


async def _artifact(recommender: AnyRecommender, service: Service) -> dict[str, Any]:
    parts = recommender.parts
    default = parts.name in service.registry.defaults.values()
    # The first look at attributes reads those of every item: not on the event loop.
    attributes = await service.searches.run(lambda: recommender.catalog.known_attributes)
    others = {each.parts.name: each.parts.pieces for each in service.recommenders.values() if each is not recommender}
    mine = [piece for piece in parts.pieces if not any(piece in pieces for pieces in others.values())]
    writes, index = None, recommender.parts.index if recommender.kind == "dense" else None
    if recommender.kind == "generative":
        writes = {"default": asdict(recommender.default), "limit": asdict(recommender.limit)}
    return {
        "name": parts.name,
        "version": parts.version,
        "recipe": parts.recipe,
        "kind": recommender.kind,
        "default": default,
        "state": "active" if default or parts.name in service.traffic.weights else "standby",
        "bytes": total_bytes([parts.pieces]),
        "own_bytes": total_bytes([mine]),
        "shares": _shares(parts.pieces, others),
        "reads": parts.reads,
        "items": len(recommender.catalog),
        "dim": index.dim if index is not None and index.takes_vectors else None,
        "writes": writes,
        "ranks": recommender.ranks,
        "history_limit": parts.reader.history_limit,
        "categories": recommender.catalog.known_categories[:CATEGORIES_SHOWN],
        "attributes": attributes[:ATTRIBUTES_SHOWN],
        "examples": [case.ids for case in parts.golden[:EXAMPLES_SHOWN] if case.ids],
    }


def _shares(pieces: tuple[SharedBlock, ...], others: dict[str, tuple[SharedBlock, ...]]) -> list[dict[str, Any]]:
    """Return what an artifact shares, one row for each kind of part and set of artifacts."""
    sums: dict[tuple[str, tuple[str, ...]], int] = {}
    for piece in {id(piece): piece for piece in pieces}.values():
        names = tuple(name for name, theirs in others.items() if piece in theirs)
        if names:
            sums[piece.kind, names] = sums.get((piece.kind, names), 0) + piece.bytes
    return [{"part": kind, "bytes": size, "artifacts": list(names)} for (kind, names), size in sums.items()]
