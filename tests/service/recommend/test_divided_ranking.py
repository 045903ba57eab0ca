"""More candidates than a batch holds, for rankers around a language model: `tallrec`, `llamarec` and `llara`."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from testing.datasets import QUIET, ring_dataset, trained_sasrec
from testing.methods import Example
from testing.models import backbone_folder
from tests.service.recommend.test_ranking import Served, serving
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

ITEMS, HISTORY, SMALL_BATCH = 60, [3, 14, 25, 7], 90
RANKERS = ["tallrec", "llamarec", "llara"]


@pytest.fixture(scope="module")
def artifacts(backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A dense artifact, and small rankers."""
    folder = tmp_path_factory.mktemp("divided")
    dataset = ring_dataset(folder, users=24, items=ITEMS)
    dense = trained_sasrec(dataset, folder)
    for name in RANKERS:
        example: Example = importlib.import_module(f"testing.methods.{name}").EXAMPLE
        settings = [*example.settings, *([f"requires={example.requires}"] if example.requires else [])]
        settings += [] if name == "llara" else ["optimizer.epochs=0"]  # it has a projector, which would be random
        recipe = get_recipe(example.recipe, settings, backbone=str(backbone_folder("qwen3")))
        run(recipe, dataset, RunOptions(out=folder / name, id_model=dense if example.requires else None), QUIET)
    return [dense, *(folder / name for name in RANKERS)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(artifacts: list[Path]) -> AsyncIterator[Served]:
    """Its batches hold all candidates."""
    async with serving(*artifacts, second_stage_ms=30_000) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def small(artifacts: list[Path]) -> AsyncIterator[Served]:
    async with serving(*artifacts, second_stage_ms=30_000, generative_batch_tokens=SMALL_BATCH) as started:
        yield started


def positions_read(served: Served, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the passes that a ranker makes from now on."""
    model: Any = served.service.recommenders[name].parts.model
    search, passes = model.scorer._search, []
    run_body = search.run_body

    def counted(ids: torch.Tensor, *others: Any) -> torch.Tensor:
        passes.append(ids.numel())
        found: torch.Tensor = run_body(ids, *others)
        return found

    monkeypatch.setattr(search, "run_body", counted)
    return passes


@pytest.mark.parametrize("name", RANKERS)
async def test_scores_are_those_of_one_batch_and_what_is_shared_is_read_once(
    whole: Served, small: Served, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"title": "a lamp of no catalog"}
    candidates = [*small.named([row for row in range(ITEMS) if row not in HISTORY]), free]
    once, often = (positions_read(each, name, monkeypatch) for each in (whole, small))
    expected, found = [await each.rank(candidates, HISTORY, artifact=name) for each in (whole, small)]
    assert found.status_code == 200, found.text
    scores, others = (
        {item["item_id"] or item["title"]: item["score"] for item in each.json()["items"]} for each in (expected, found)
    )
    assert set(scores) == set(others) and len(scores) == len(candidates)
    np.testing.assert_allclose([others[item] for item in scores], list(scores.values()), atol=1e-5)
    assert np.ptp(list(scores.values())) > 1e-3
    assert sum(often) == sum(once) > SMALL_BATCH
    timings = found.json()["timings_ms"]
    assert timings["queue"] + timings["rank"] <= timings["total"]
    turned = await small.rank(candidates[::-1], HISTORY, artifact=name)
    assert turned.json()["items"] == found.json()["items"]


async def test_a_second_stage_is_divided_too(whole: Served, small: Served) -> None:
    stage = {"artifact": "llamarec", "candidates": 50}
    expected, found = [await each.recommend(HISTORY, k=50, rerank=stage) for each in (whole, small)]
    assert found["degraded"] == [] and found["rerank"]["candidates"] == 50
    assert [item["item_id"] for item in found["items"]] == [item["item_id"] for item in expected["items"]]


async def test_past_the_deadline_the_rest_is_not_scored(artifacts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is taken away when the history has been read; the parts of the request leave the queue together."""
    given: dict[str, Any] = {"generative_batch_tokens": SMALL_BATCH, "generative_deadline_ms": 200}
    async with serving(*artifacts, second_stage_ms=100, **given) as served:
        candidates, passes = served.named(list(range(ITEMS))), positions_read(served, "llamarec", monkeypatch)
        plain = await served.recommend(HISTORY, k=5)
        device = served.service.registry.device
        turn = device.turn

        def one() -> int:
            return 1

        def first(*given: Any) -> Any:
            if passes:
                device.watch(one)
            return turn(*given)

        monkeypatch.setattr(device, "turn", first)
        late = await served.rank(candidates, HISTORY, artifact="llamarec")
        error = late.json()["error"]
        assert (late.status_code, error["code"]) == (504, "deadline_exceeded") and sum(passes) < SMALL_BATCH
        degraded = await served.recommend(HISTORY, k=5, rerank={"artifact": "llamarec", "candidates": 50})
        assert degraded["degraded"] == ["rerank"] and degraded["items"] == plain["items"]
        device.unwatch(one)
        engine = served.service.recommenders["llamarec"].engine
        for _ in range(500):  # the engine's thread drops what nobody waits for when it looks at the queue
            if engine.load() == (0, 0):
                break
            await asyncio.sleep(0.01)
        assert engine.load() == (0, 0)


async def test_what_cannot_be_divided_or_queued_is_refused_with_the_setting_to_change(artifacts: list[Path]) -> None:
    for settings, name, words in (
        ({"generative_batch_tokens": 20}, "tallrec", "1 of the candidates takes"),
        ({"generative_batch_tokens": 40}, "llamarec", "4 of the candidates takes"),
        ({"generative_batch_tokens": 90, "generative_queued_tokens": 100}, "llara", "ANYO_GENERATIVE_QUEUED_TOKENS"),
        ({"generative_batch_tokens": 90, "generative_queued_requests": 2}, "llara", "ANYO_GENERATIVE_QUEUED_REQUESTS"),
    ):
        async with serving(*artifacts[:1], artifacts[0].parent / name, **settings) as served:
            refused = await served.rank(served.named(list(range(ITEMS))), HISTORY, artifact=name)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"], error["field"]) == (413, "too_large", "candidates"), error
            assert words in error["message"] and "ANYO_GENERATIVE_" in error["message"], error
            body = {"history": served.named(HISTORY), "rerank": {"artifact": name, "candidates": 50}}
            error = (await served.client.post("/recommend", json=body)).json()["error"]
            assert (error["code"], error["field"]) == ("too_large", "rerank.candidates")


async def test_items_added_while_serving_are_ranked_by_their_titles(artifacts: list[Path]) -> None:
    title, given = "a lamp of no catalog", {"second_stage_ms": 30_000, "item_store": "sqlite:///:memory:"}
    async with serving(*artifacts, **given) as served:
        added = {"title": title, "vector": [0.0] * served.service.recommender(None).parts.index.dim}
        for name in ("new", "twin"):
            put = await served.client.put(f"/items/{name}", json=added)
            assert put.status_code == 200, put.text
        everything = {*served.named(list(range(ITEMS))), "new", "twin"}
        known = served.named([row for row in range(ITEMS) if row not in HISTORY])
        for ranker in RANKERS:
            free = await served.rank([*known, {"title": title}], HISTORY, artifact=ranker)
            score_of = {item["item_id"] or title: item["score"] for item in free.json()["items"]}
            found = (await served.rank(["twin", *known, {"title": title}, "new"], HISTORY, artifact=ranker)).json()
            assert found["unknown_candidates"] == [] and len(found["items"]) == len(known) + 3
            same = [item for item in found["items"] if item["title"] == title]
            assert [item["item_id"] for item in same] == ["new", "twin", None]
            for item in found["items"]:
                assert item["score"] == pytest.approx(
                    score_of[item["item_id"] if item not in same else title], abs=1e-5
                )
            stage = {"artifact": ranker, "candidates": len(everything)}
            again = await served.recommend(HISTORY, k=len(everything), exclude_seen=False, rerank=stage)
            assert again["degraded"] == [] and {item["item_id"] for item in again["items"]} == everything
            expected = (await served.rank(sorted(everything), HISTORY, artifact=ranker)).json()["items"]
            assert [item["score"] for item in again["items"]] == pytest.approx([item["score"] for item in expected])
        assert (await served.client.patch("/items/new", json={"state": "hidden"})).status_code == 200
        hidden = (await served.rank(["new", "twin"], HISTORY, artifact="tallrec")).json()
        assert hidden["unknown_candidates"] == ["new"] and [item["item_id"] for item in hidden["items"]] == ["twin"]


async def test_an_item_withdrawn_while_its_title_is_scored_is_not_answered(
    artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(*artifacts[:2], item_store="sqlite:///:memory:") as served:
        vector = [0.0] * served.service.recommender(None).parts.index.dim
        for name in ("gone", "kept"):
            await served.client.put(f"/items/{name}", json={"title": f"a lamp that is {name}", "vector": vector})
        device, scoring = served.service.registry.device, threading.Event()
        turn = device.turn

        def one() -> int:
            return 1

        def announced(*given: Any) -> Any:
            scoring.set()
            return turn(*given)

        monkeypatch.setattr(device, "turn", announced)
        device.watch(one)  # a dense request that always waits: the ranker does not get the device
        waiting = asyncio.create_task(served.rank(["gone", "kept"], HISTORY, artifact="tallrec"))
        async with asyncio.timeout(10):
            while not scoring.is_set():
                await asyncio.sleep(0.01)
        assert (await served.client.delete("/items/gone")).status_code == 200
        changed = await served.client.patch("/items/kept", json={"title": "a lamp that is blue"})
        assert changed.status_code == 200, changed.text
        device.unwatch(one)
        found = (await waiting).json()
        assert [item["title"] for item in found["items"]] == ["a lamp that is blue"]
        assert found["unknown_candidates"] == ["gone"]
