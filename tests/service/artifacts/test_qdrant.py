"""A service whose items an engine finds answers as one without it; the engine here is the embedded one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from qdrant_client.http.exceptions import ResponseHandlingException

from index import Catalog
from index.filters.stored import attributes_text
from index.qdrant import engine as engines
from index.qdrant import searching
from modeling.encoder.build import build_model
from service.bulk.export import ExportOptions, export
from service.errors import StartError
from service.http.app import create_app
from service.service import Service
from service.settings import SettingsError, load_settings
from testing.artifacts import SPEC, write_dense_artifact

ENGINE: dict[str, Any] = {"qdrant_url": ":memory:"}
ITEMS = 200
HISTORIES = [[3], [0, 5, 7], [8, 8, 10, 1]]


def write_artifact(folder: Path, cheap: float = 5.0) -> Path:
    """Items with attributes; another `cheap` is another version."""
    catalog = Catalog(
        item_ids=tuple(f"i{row}" for row in range(ITEMS)),
        titles=tuple(f"Thing {row}" for row in range(ITEMS)),
        categories=tuple((f"shelf {row % 4}",) for row in range(ITEMS)),
        popularity=np.arange(ITEMS, dtype=np.int64),
        popularity_counted_on="train",
        attribute_texts=tuple(
            attributes_text({"price": cheap + row % 40, "new": row % 9 == 0}) for row in range(ITEMS)
        ),
    )
    return write_dense_artifact(build_model(SPEC, catalog_size=ITEMS), folder, catalog, HISTORIES, recipe="sasrec")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_artifact(tmp_path_factory.mktemp("engine") / "shop").parent


@contextlib.asynccontextmanager
async def running(root: Path, **given: Any) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    settings = load_settings(
        artifacts=(root / "shop",), store="sqlite:///:memory:", item_store="sqlite:///:memory:", warmup_requests=0,
        load_trial="never", artifacts_root=root, **given,
    )  # fmt: skip
    service = Service(settings)
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        headers = {"content-type": "application/json", "x-api-key": service.start_key or ""}
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            yield service, client
    finally:
        await service.close()


def metric(service: Service, name: str) -> float:
    return service.metrics.registry.get_sample_value(f"anyo_{name}") or 0.0


def passing(**condition: Any) -> dict[str, Any]:
    return {"attribute": "price", **condition}


FILTERS: list[dict[str, Any]] = [
    passing(any_of=[17]),
    passing(at_most=20),
    {"any": [passing(above=30), {"attribute": "new", "any_of": [True]}]},
    {"attribute": "categories", "none_of": ["shelf 1"]},
    passing(at_least=0),
]
CHANGES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("PUT", "/items/i3", {"title": "Thing 3", "state": "hidden"}),
    ("DELETE", "/items/i44", None),
    ("PUT", "/items/i7", {"title": "Thing 7", "attributes": {"price": 17.0}, "categories": ["shelf 9"]}),
]


async def answers(client: httpx.AsyncClient) -> list[list[tuple[str, float]]]:
    """Of all that finds items or reads their vectors."""
    history = {"history": ["i3", "i5", "i9"], "k": 20}
    bodies = [{**history, "filter": each} for each in FILTERS]
    bodies += [history, {**history, "exclude_seen": False}, {**history, "exclude": [f"i{row}" for row in range(90)]}]
    found = [(await client.post("/recommend", json=body)).json() for body in bodies]
    found += (await client.post("/recommend/batch", json={"requests": bodies[::3]})).json()["results"]
    candidates = [f"i{row}" for row in range(40)]
    found.append((await client.post("/rank", json={"history": ["i3", "i9"], "candidates": candidates})).json())
    for each in (None, *FILTERS):
        query = {"k": 20} | ({} if each is None else {"filter": json.dumps(each)})
        found.append((await client.get("/items/i9/similar", params=query)).json())
    return [[(item["item_id"], item["score"]) for item in answer["items"]] for answer in found]


async def test_answers_are_those_of_exact_search_before_and_after_items_change(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "NARROW_ROWS", 0)
    seen: list[list[list[tuple[str, float]]]] = []
    exported = []
    for given in ({}, ENGINE):
        async with running(root, **given) as (service, client):
            seen.append(await answers(client))
            for method, path, body in CHANGES:
                assert (await client.request(method, path, json=body)).status_code in (200, 204), path
            seen.append(await answers(client))
            user = {"events": [{"item_id": "i9"}, {"item_id": "i12"}]}
            assert (await client.post("/users/u1/events", json=user)).status_code == 200
            out = tmp_path / str(len(seen))
            await export(service, None, out, ExportOptions(k=7), lambda said: None)
            exported.append(pl.read_parquet(out / "part-00000.parquet")["item_id"].to_list())
            asked = metric(service, "index_engine_seconds_count")
            assert asked > 20 if given else asked == 0
            assert (
                metric(service, "index_engine_fallbacks_total") == metric(service, "index_engine_failures_total") == 0
            )
            assert metric(service, "index_recall") == metric(service, "index_engine_up") == 1
    for plain, engine in zip(seen[:2], seen[2:], strict=True):
        for expected, found in zip(plain, engine, strict=True):
            assert [item for item, _ in found] == [item for item, _ in expected]
            np.testing.assert_allclose(
                [score for _, score in found], [score for _, score in expected], rtol=1e-4, atol=1e-5
            )
    shown = {item for answer in seen[3] for item, _ in answer}
    assert not shown & {"i3", "i44"} and "i7" in shown and exported[0] == exported[1] != []


async def test_the_collection_of_the_old_version_goes_after_the_swap(tmp_path: Path) -> None:
    folder = write_artifact(tmp_path / "shop")
    async with running(tmp_path, **ENGINE) as (service, client):
        engine = service.index_engine._engine  # type: ignore[union-attr]

        def collections() -> set[str]:
            found = {each.name for each in engine._client.get_collections().collections}
            return {name for name in found if name.startswith(engines.COLLECTIONS)}

        (old,) = collections()
        assert service.loaded().parts.version in old
        await asyncio.to_thread(write_artifact, folder, 6.0)
        answer = await client.post("/artifacts/shop/load")
        assert answer.status_code == 200 and answer.json()["changed"], answer.text
        for _ in range(200):
            if old not in collections():
                break
            await asyncio.sleep(0.02)
        (new,) = collections()
        assert new != old and service.loaded().parts.version in new
        assert (await client.post("/recommend", json={"history": ["i5"]})).status_code == 200


async def test_an_engine_that_is_away_is_503_and_not_ready_or_costs_time_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "AGAIN_S", 0.0)

    def away(*_: Any, **__: Any) -> Any:
        raise ResponseHandlingException(OSError("connection refused"))

    expected = None
    for what in ("exact", "refuse"):
        async with running(root, qdrant_away=what, **ENGINE) as (service, client):
            engine = service.index_engine._engine  # type: ignore[union-attr]
            before = (await client.post("/recommend", json={"history": ["i5"]})).json()["items"]
            assert expected is None or [item["item_id"] for item in before] == expected
            expected = [item["item_id"] for item in before]
            for call in ("query_batch_points", "get_collections", "count"):
                monkeypatch.setattr(engine._client, call, away, raising=False)
            answer = await client.post("/recommend", json={"history": ["i5"], "k": 10})
            similar = await client.get("/items/i9/similar")
            assert metric(service, "index_engine_up") == 0
            ready = await client.get("/readyz")
            ranked = await client.post("/rank", json={"history": ["i5"], "candidates": ["i1", "i2"]})
            assert ranked.status_code == (await client.get("/livez")).status_code == 200
            if what == "exact":
                assert [item["item_id"] for item in answer.json()["items"]] == expected
                assert similar.status_code == ready.status_code == 200
                assert metric(service, "index_engine_fallbacks_total") == 2
            else:
                for refused in (answer, similar):
                    assert refused.status_code == 503 and refused.headers["retry-after"] == "1", refused.text
                    assert refused.json()["error"]["code"] == "index_unavailable"
                    assert "index engine does not answer (OSError)" in refused.json()["error"]["message"]
                assert ready.status_code == 503 and "does not answer (OSError)" in ready.text
            for call in ("query_batch_points", "get_collections", "count"):
                monkeypatch.delattr(engine._client, call)
            await asyncio.to_thread(engine.look)
            assert (await client.get("/readyz")).status_code == 200
            after = (await client.post("/recommend", json={"history": ["i5"]})).json()["items"]
            assert [item["item_id"] for item in after] == expected


async def test_a_start_without_the_engine_and_a_poor_collection_are_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(StartError, match=f"index engine does not answer .*{url}") as refused:
        async with running(root, qdrant_url=url, qdrant_api_key="s3cret-key"):
            pass
    assert "s3cret-key" not in str(refused.value)
    monkeypatch.setattr("service.artifacts.qdrant.recall_of", lambda *_: 0.42)
    with pytest.raises(StartError, match=r"finds 42% of the ten best .* ANYO_QDRANT_LEAST_RECALL is 0.8"):
        async with running(root, **ENGINE):
            pass


@pytest.mark.parametrize(
    "url",
    [
        "qdrant:6333",
        "http://",
        "http://user:pass-word@host:6333",
        "ftp://host",
        "http://host:1?x=1",
        "https://host",
        "file://",
    ],
)
def test_a_wrong_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError, match="ANYO_QDRANT_URL") as refused:
        load_settings(qdrant_url=url)
    assert "pass-word" not in str(refused.value)
    assert "s3cret" not in repr(load_settings(qdrant_url="https://host:6333/q", qdrant_api_key="s3cret"))
