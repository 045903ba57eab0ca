"""Artifacts that count interactions answer every request that those with item vectors answer, as they are evaluated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from rich.console import Console

import anyo
from modeling.methods import load
from modeling.methods.counts import CountsModel
from testing.datasets import ring_dataset
from tests.service.recommend.test_ranking import Served, serving
from training.compare import open_artifact
from training.data.dataset import Dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

RECIPES = {
    "item_knn": ["method.last=3"],
    "hybrid_knn": ["method.last=3", "method.neighbours=6"],
    "markov": [],
    "popularity": [],
}
HISTORY = [3, 11, 5, 8]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=40, items=30)


@pytest.fixture(scope="module")
def folders(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("artifacts")
    for name, settings in RECIPES.items():
        run(get_recipe(name, settings), ring, RunOptions(out=root / name), Console(quiet=True))
    return {name: root / name for name in RECIPES}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(folders: dict[str, Path]) -> AsyncIterator[Served]:
    async with serving(*folders.values()) as started:
        yield started


def ids(found: Any) -> list[str]:
    return [item["item_id"] for item in found["items"]]


def scores_of(folders: dict[str, Path], name: str, history: list[int]) -> np.ndarray:
    model: CountsModel = load(folders[name]).model
    return model.scores(history)


def best(scores_N: np.ndarray, without: list[int]) -> list[int]:
    order = np.argsort(-scores_N.astype(np.float32), kind="stable").tolist()
    return [row for row in order if row not in without]


@pytest.mark.parametrize("name", RECIPES)
async def test_it_is_served_and_read_locally_as_it_is_evaluated(
    name: str, served: Served, folders: dict[str, Path], ring: Dataset
) -> None:
    opened, local = open_artifact(folders[name], ring, "validation"), anyo.load(folders[name])
    evaluated = opened.answer(opened.targets, opened.split.popularity(), seed=0)
    assert evaluated.index_metrics["ndcg@10"] > 0
    for history, top_K in zip(opened.targets.histories(), evaluated.top_rows_TK[:, :10], strict=True):
        top = served.named(top_K[top_K >= 0].tolist())
        assert ids(await served.recommend(history.tolist(), artifact=name)) == top
        assert [item.item_id for item in local.recommend(served.named(history.tolist()))] == top


@pytest.mark.parametrize("name", RECIPES)
async def test_an_explanation_leaves_one_item_out(name: str, served: Served, folders: dict[str, Path]) -> None:
    answer = await served.recommend(HISTORY, artifact=name, k=6, explain=True)
    limit = load(folders[name]).model.encoder.history_limit
    found, whole_N = answer["explanation"], scores_of(folders, name, HISTORY)
    assert [item["item_id"] for item in found["history"]] == served.named(HISTORY[-limit:])
    for place, read in enumerate(range(len(HISTORY) - limit, len(HISTORY))):
        without_N = scores_of(folders, name, HISTORY[:read] + HISTORY[read + 1 :])
        for item, values in zip(answer["items"], found["influence"]["values"], strict=True):
            row = served.ids.index(item["item_id"])
            assert values[place] == pytest.approx(whole_N[row] - without_N[row], abs=1e-5)


async def test_a_batch_a_ranking_and_a_second_stage(served: Served, folders: dict[str, Path]) -> None:
    history = served.named(HISTORY)
    ask = {"history": history, "k": 30, "exclude_seen": False}
    (together,) = (await served.client.post("/recommend/batch", json={"requests": [ask]})).json()["results"]
    assert ids(together) == served.named(best(scores_of(folders, "item_knn", HISTORY), []))
    candidates = list(range(0, 30, 4))
    ranked = (await served.rank(served.named(candidates), HISTORY, artifact="markov")).json()
    wanted = [row for row in best(scores_of(folders, "markov", HISTORY), []) if row in candidates]
    assert ids(ranked) == served.named(wanted)
    again = await served.recommend(HISTORY, artifact="markov", k=5, rerank={"artifact": "item_knn", "candidates": 8})
    first = best(scores_of(folders, "markov", HISTORY), HISTORY)[:8]
    wanted = [row for row in best(scores_of(folders, "item_knn", HISTORY), []) if row in first][:5]
    assert ids(again) == served.named(wanted) and again["degraded"] == []
    unlike = await served.recommend(HISTORY, k=5, diversity={"mmr": 0.7, "candidates": 20})
    plain = await served.recommend(HISTORY, k=20)
    assert ids(unlike)[0] == ids(plain)[0] and set(ids(unlike)) < set(ids(plain)) and ids(unlike) != ids(plain)[:5]
    title = await served.rank([{"title": "a lamp"}], HISTORY)
    assert title.status_code == 409 and "reads ids only" in title.json()["error"]["message"]
    written = await served.client.post("/recommend/generative", json={"history": history, "artifact": "markov"})
    assert written.json()["error"]["code"] == "wrong_kind"


async def test_similar_items_are_those_of_the_table(served: Served, folders: dict[str, Path]) -> None:
    for name, some in (("item_knn", True), ("hybrid_knn", True), ("markov", True), ("popularity", False)):
        answer = await served.client.get("/items/i7/similar", params={"k": 30, "artifact": name})
        columns, values = load(folders[name]).model.index().row(served.ids.index("i7"))
        wanted = sorted(zip((-values).tolist(), columns.tolist(), strict=True))
        assert ids(answer.json()) == served.named([column for _, column in wanted])
        assert bool(wanted) == some
    (shown,) = [each for each in (await served.client.get("/artifacts")).json()["items"] if each["name"] == "markov"]
    assert (shown["kind"], shown["dim"], shown["ranks"]) == ("dense", None, True)


async def test_a_changed_item_keeps_its_counts_and_a_new_one_has_none(folders: dict[str, Path]) -> None:
    async with serving(folders["item_knn"], item_store="sqlite:///:memory:") as anyo_:
        before = ids(await anyo_.recommend(HISTORY, k=20))
        change = {"title": "a red lamp", "categories": ["lamps"]}
        assert (await anyo_.client.put(f"/items/{before[2]}", json=change)).status_code == 200
        found = await anyo_.recommend(HISTORY, k=20)
        assert ids(found) == before and found["items"][2]["title"] == "a red lamp"
        assert ids(await anyo_.recommend(HISTORY, categories=["lamps"])) == [before[2]]
        asked = [anyo_.ids.index(before[2]), *HISTORY]  # it is read as before, too
        explained = await anyo_.recommend(asked, k=5, explain=True)
        assert np.isfinite(explained["explanation"]["influence"]["values"]).all()
        new = await anyo_.client.put("/items/new", json={"title": "a lamp"})
        assert new.status_code == 409 and "a new item has none; train an artifact" in new.json()["error"]["message"]
        given = await anyo_.client.put("/items/new", json={"title": "a lamp", "vector": [0.0, 1.0, 2.0, 3.0]})
        assert given.status_code == 422 and "counts interactions: leave vector out" in given.json()["error"]["message"]
        assert (await anyo_.client.patch(f"/items/{before[0]}", json={"state": "hidden"})).status_code == 200
        assert ids(await anyo_.recommend(HISTORY, k=19)) == before[1:]
