"""More candidates than a batch holds, for rankers around a language model: `tallrec`, `llamarec` and `llara`."""

from __future__ import annotations

import asyncio
import importlib
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
