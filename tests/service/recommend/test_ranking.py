"""Ranking given candidates, and a second stage, on real artifacts: a small transformer over ids and a
Markov chain, which is a ranker that is none of the project's methods.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

import modeling.methods
from index import Catalog
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.golden import WrittenCase, write_golden
from modeling.encoder.build import Model
from modeling.generation.api import ListQuery
from modeling.methods import get_method, load, write_manifest
from modeling.methods.base_ranking import RankPrompt, VectorRanker
from modeling.spec import AdapterSpec, ItemsSpec
from service.http.app import create_app
from service.service import Service
from service.settings import load_settings
from testing.artifacts import ITEMS, LIMIT, write_id_artifact, write_text_artifact
from testing.models import TITLES, backbone_folder, small_model
from testing.running import declare

__all__ = ["backbone_folder", "small_model"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADDED = Path(__file__).parents[2] / "added_method"
HISTORY = [3, 141, 59, 26, 5]
EMPTY: list[str] = []


@pytest.fixture(scope="module")
def added() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling.methods, "__path__", [*modeling.methods.__path__, str(ADDED / "modeling")])
        yield


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_id_artifact(tmp_path_factory.mktemp("artifacts"), "small")


@pytest.fixture(scope="module")
def chain(added: None, dense: Path) -> Path:
    """A ranker of the same catalog, in an artifact of its own."""
    from modeling.methods.transitions import TransitionModel  # type: ignore[import-untyped]

    rng, catalog = np.random.default_rng(5), Catalog.read(dense / "catalog.parquet")
    popular_N = np.arange(1, ITEMS + 1, dtype=np.float32)
    counts_NN = rng.integers(0, 50, (ITEMS, ITEMS)).astype(np.float32)
    model = TransitionModel(counts_NN, popular_N / popular_N.sum(), 0.1)
    (written,) = model.write([model.prepare([7])], [ListQuery(10, np.array([7]))])
    method = get_method("transitions")
    with replaced_folder(dense.parent / "chain") as work:
        catalog.write(work / "catalog.parquet")
        record = method.save(work, model)
        top = [catalog.item_ids[row] for row in written.rows_K]
        write_golden(work, [WrittenCase(history=[catalog.item_ids[7]], texts=[], top=top)])
        write_manifest(
            work, method, model, record, catalog_size=ITEMS, name="chain", recipe="transitions", recipe_data={},
            data="made up", data_sha256="0", split="leave-one-out", fitted_on="train", metrics={}, training={},
            commit=None,
        )  # fmt: skip
    return dense.parent / "chain"


class Served:
    """A service over both artifacts, and what it should answer."""

    def __init__(self, service: Service, client: httpx.AsyncClient, dense: Path) -> None:
        self.service, self.client = service, client
        self.model = load(dense).model
        self.ids = service.recommender(None).parts.catalog.item_ids

    async def rank(self, candidates: list[Any], history: list[int] | None = None, **body: Any) -> Any:
        given = {"history": self.named(HISTORY if history is None else history), "candidates": candidates, **body}
        return await self.client.post("/rank", json=given)

    async def recommend(self, history: list[int], **body: Any) -> Any:
        answer = await self.client.post("/recommend", json={"history": self.named(history), **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def named(self, rows: list[int]) -> list[str]:
        return [self.ids[row] for row in rows]

    def scores(self, history: list[int], rows: list[int]) -> np.ndarray:
        """Inner products, computed apart from the service."""
        encoder = self.model.encoder
        (user_D,) = encoder.encode([encoder.prepare(history[-LIMIT:])])
        found: np.ndarray = self.model.item_vectors_ND[rows].astype(np.float64) @ user_D.astype(np.float64)
        return found

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextlib.asynccontextmanager
async def serving(*folders: Path, **given: Any) -> AsyncIterator[Served]:
    service = Service(load_settings(artifacts=folders, store="sqlite:///:memory:", warmup_requests=0, **given))
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        hooks: Any = {"request": [lambda request: declare(service, request)]}
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", event_hooks=hooks) as client:
            yield Served(service, client, folders[0])
    finally:
        await service.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(dense: Path, chain: Path) -> AsyncIterator[Served]:
    async with serving(dense, chain) as started:
        yield started


def order(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


# -- given candidates ------------------------------------------------------------------------------------------------


async def test_candidates_are_ordered_by_the_inner_product(served: Served) -> None:
    rows = [400, 3, 77, 12, 250]  # one of them is in the history: it is ranked as any other
    answer = (await served.rank(served.named(rows))).json()
    expected = served.scores(HISTORY, rows)
    best = np.argsort(-expected, kind="stable")
    assert [item["item_id"] for item in answer["items"]] == served.named([rows[place] for place in best])
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], expected[best], atol=1e-5)
    assert answer["artifact"]["name"] == "small" and answer["source"] in ("model", "cache")
    prompt = RankPrompt(tuple(HISTORY), tuple(rows))
    (scores_C,) = VectorRanker(served.model).score([prompt])
    np.testing.assert_allclose(scores_C, expected, atol=1e-5)


async def test_the_order_of_the_candidates_changes_nothing(served: Served) -> None:
    rows = random.Random(0).sample(range(ITEMS), 200)
    one = (await served.rank(served.named(rows))).json()["items"]
    for seed in (1, 2):
        shuffled = random.Random(seed).sample(rows, len(rows))
        for extra in ({}, {"artifact": "chain"}):
            other = (await served.rank(served.named(shuffled), **extra)).json()["items"]
            given = (await served.rank(served.named(rows), **extra)).json()["items"] if extra else one
            assert other == given


async def test_a_score_does_not_depend_on_the_other_candidates_nor_on_the_batch(served: Served) -> None:
    rng = np.random.default_rng(2)
    histories = [rng.integers(0, ITEMS, size=rng.integers(1, 30)).tolist() for _ in range(40)]
    asked = [[int(row) for row in rng.choice(ITEMS, size=int(rng.integers(1, 60)), replace=False)] for _ in histories]
    asks = list(zip(histories, asked, strict=True))
    for artifact in ("small", "chain"):
        together = await asyncio.gather(
            *(served.rank(served.named(rows), history, artifact=artifact) for history, rows in asks)
        )
        for history, rows, answer in [(*ask, answer) for ask, answer in zip(asks, together, strict=True)][:8]:
            found = {item["item_id"]: item["score"] for item in answer.json()["items"]}
            alone = (await served.rank(served.named(rows[:1]), history, artifact=artifact)).json()["items"][0]
            assert found[alone["item_id"]] == pytest.approx(alone["score"], abs=1e-5)


async def test_repeated_and_unknown_candidates_are_named(served: Served) -> None:
    first, second = served.named([8, 9])
    answer = (await served.rank([first, "nothing", second, first, "nothing", first])).json()
    assert sorted(item["item_id"] for item in answer["items"]) == [first, second]
    assert answer["unknown_candidates"] == ["nothing"] and answer["repeated_candidates"] == [first]
    refused = await served.rank(["nothing", "at all"])
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["field"]) == (422, "no_usable_candidates", "candidates")
    assert "'nothing', 'at all'" in error["message"]


async def test_a_thousand_candidates_are_ranked_and_more_are_refused(served: Served) -> None:
    everything = served.named(list(range(ITEMS))) + [f"unknown {number}" for number in range(1000 - ITEMS)]
    answer = (await served.rank(everything)).json()
    assert len(answer["items"]) == ITEMS and len(answer["unknown_candidates"]) == 1000 - ITEMS
    scores = [item["score"] for item in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    for candidates in ([*everything, "one more"], []):
        refused = await served.rank(candidates)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "candidates")


async def test_a_ranker_scores_more_than_a_batch_holds_in_parts(dense: Path, chain: Path) -> None:
    rows = list(range(300))
    async with serving(dense, chain) as whole:
        expected = (await whole.rank(whole.named(rows), artifact="chain")).json()["items"]
    async with serving(dense, chain, generative_batch_tokens=64) as small:
        assert (await small.rank(small.named(rows), artifact="chain")).json()["items"] == expected
        refused = await small.recommend(HISTORY, rerank={"artifact": "chain", "candidates": 300})
        assert refused["rerank"]["candidates"] == 300


async def test_what_cannot_be_ranked_is_refused_in_the_shape_of_all_errors(served: Served) -> None:
    one = served.named([1])
    for status, code, field, answer in (
        (404, "unknown_artifact", "artifact", await served.rank(one, artifact="other")),
        (404, "unknown_recipe", "recipe", await served.rank(one, recipe="tallrec")),
        (409, "conflict", "recipe", await served.rank(one, artifact="chain", recipe="sasrec")),
        (409, "cannot_read_text", "candidates", await served.rank([*one, {"title": "Fog"}])),
        (422, "no_usable_history", "history", await served.rank(one, history=[])),
        (422, "invalid_input", "candidates.0", await served.rank([5])),
        (422, "invalid_input", "candidates.0.name", await served.rank([{"title": "x", "name": "y"}])),
        (422, "invalid_input", "k", await served.rank(one, k=5)),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["field"]) == (status, code, field), answer.text


async def test_a_free_title_is_scored_as_the_item_tower_encodes_it(
    small_model: Callable[..., Model], tmp_path: Path
) -> None:
    """The pointwise form of a language model as ranker: inner product of the states of history and candidate."""
    model = small_model("text", adapter=AdapterSpec(kind="none"), items=ItemsSpec(tower="encoder", dim=16))
    model.encoder.refresh_items()
    async with serving(write_text_artifact(model, tmp_path / "texts")) as anyo:
        row_of = {title: row for row, title in enumerate(TITLES)}
        title, fresh = TITLES[2], "a lamp of no catalog"
        answer = (await anyo.rank(["i2", {"title": fresh}, {"title": title}, "i7", {"title": title}], [0, 5])).json()
        scores = {item["item_id"] or item["title"]: item["score"] for item in answer["items"]}
        assert len(answer["items"]) == 4 and answer["repeated_candidates"] == [title]
        assert [item["item_id"] for item in answer["items"] if item["title"] == fresh] == [None]
        assert scores[title] == pytest.approx(scores[f"i{row_of[title]}"], abs=1e-5)
        (user_D,) = anyo.model.encoder.encode([anyo.model.encoder.prepare([0, 5])])
        for name, vector_D in zip((fresh, "i2"), anyo.model.encoder.title_vectors([fresh, title]), strict=True):
            assert scores[name] == pytest.approx(float(vector_D @ user_D), abs=1e-5)
        read = anyo.model.encoder.read_titles([fresh])
        (found_C,) = VectorRanker(anyo.model).score([RankPrompt((0, 5), (2, *read))])
        np.testing.assert_allclose(found_C, [scores["i2"], scores[fresh]], atol=1e-5)
        history = [{"title": fresh}, "i5"]
        body = {"history": history, "k": 3, "explain": True}
        explained = (await anyo.client.post("/recommend", json=body)).json()
        assert [item["item_id"] for item in explained["explanation"]["history"]] == [None, "i5"]
        body = {"history": ["i5"], "k": 12, "exclude_seen": False}
        without = (await anyo.client.post("/recommend", json=body)).json()
        score = {item["item_id"]: item["score"] for item in without["items"]}
        for item, values in zip(explained["items"], explained["explanation"]["influence"]["values"], strict=True):
            assert values[0] == pytest.approx(item["score"] - score[item["item_id"]], abs=1e-5)


async def test_a_user_of_whom_nothing_is_known_gets_the_popular_ones_first(served: Served) -> None:
    answer = (await served.rank(served.named([4, 99, 40]), history=[], user_id="nobody")).json()
    assert [item["item_id"] for item in answer["items"]] == served.named([99, 40, 4])
    assert answer["source"] == "popular" and answer["items"][0]["score"] == 99
    await served.client.post("/users/anna/events", json={"events": [{"item_id": served.ids[row]} for row in HISTORY]})
    stored = await served.rank(served.named([4, 99, 40]), history=[], user_id="anna")
    assert order(stored) == order(await served.rank(served.named([4, 99, 40])))


async def test_split_and_shadow_rank_too(served: Served, dense: Path, tmp_path: Path) -> None:
    other = write_id_artifact(tmp_path, "other")
    async with serving(dense, other) as anyo:
        put = await anyo.client.put("/traffic", json={"weights": {"other": 1}, "shadow": "small"})
        assert put.status_code == 200, put.text
        rows = list(range(60))
        assert (await anyo.rank(anyo.named(rows))).json()["artifact"]["name"] == "other"
        assert (await anyo.rank(anyo.named(rows), artifact="small")).json()["artifact"]["name"] == "small"
        for _ in range(400):
            shadow = (await anyo.client.get("/traffic")).json()["shadow"]
            if shadow["compared"]:
                break
            await asyncio.sleep(0.01)
        assert (shadow["compared"], shadow["failed"], shadow["overlap"]) == (1, 0, 1.0)


# -- a second stage --------------------------------------------------------------------------------------------------


async def test_a_second_stage_orders_what_was_retrieved(served: Served) -> None:
    before = served.metric("anyo_reranks_total", result="ranked")
    plain = await served.recommend(HISTORY, k=30)
    retrieved = [item["item_id"] for item in plain["items"]]
    for stage in ({"artifact": "chain", "candidates": 30}, {"recipe": "transitions", "candidates": 30}):
        answer = await served.recommend(HISTORY, k=7, rerank=stage)
        expected = (await served.rank(retrieved, artifact="chain")).json()["items"][:7]
        assert [(item["item_id"], item["score"]) for item in answer["items"]] == [
            (item["item_id"], item["score"]) for item in expected
        ]
        assert answer["rerank"]["artifact"]["name"] == "chain" and answer["degraded"] == EMPTY
        assert answer["artifact"]["name"] == "small" and "rerank" in answer["timings_ms"]
    assert "rerank" not in plain and served.metric("anyo_reranks_total", result="ranked") == before + 2
    own = await served.recommend(HISTORY, k=7, rerank={"artifact": "small", "candidates": 30})
    assert [item["item_id"] for item in own["items"]] == retrieved[:7], "its own order is the dense one"


async def test_past_its_time_the_dense_order_is_answered(dense: Path, chain: Path) -> None:
    async with serving(dense, chain, second_stage_ms=30) as anyo:
        plain = await anyo.recommend(HISTORY, k=5)
        device = anyo.service.registry.device

        def one() -> int:
            return 1

        device.watch(one)  # a dense request that always waits: the ranker never gets the device
        late = await anyo.recommend(HISTORY, k=5, rerank={"artifact": "chain", "candidates": 20})
        device.unwatch(one)
        assert late["items"] == plain["items"] and late["degraded"] == ["rerank"] and late["rerank"] is None
        assert anyo.metric("anyo_reranks_total", result="degraded") == 1
        again = await anyo.recommend(HISTORY, k=5, rerank={"artifact": "small", "candidates": 20})
        assert again["degraded"] == EMPTY, "only that stage was late"


async def test_an_added_item_is_unknown_to_a_ranker_that_reads_ids_only(dense: Path, chain: Path) -> None:
    async with serving(dense, chain, item_store="sqlite:///:memory:") as anyo:
        plain = await anyo.recommend(HISTORY, k=20)
        best = (anyo.model.encoder.encode([anyo.model.encoder.prepare(HISTORY)])[0] * 9).tolist()
        put = await anyo.client.put("/items/new", json={"title": "New", "vector": best})
        assert put.status_code == 200, put.text
        found = (await anyo.rank(["new", anyo.ids[7]], artifact="chain")).json()
        assert found["unknown_candidates"] == ["new"] and len(found["items"]) == 1
        answer = await anyo.recommend(HISTORY, k=21, rerank={"artifact": "chain", "candidates": 21})
        assert answer["degraded"] == ["rerank"] and answer["rerank"] is None
        assert [item["item_id"] for item in answer["items"]] == ["new", *(item["item_id"] for item in plain["items"])]


async def test_a_second_stage_that_cannot_be_is_refused(served: Served) -> None:
    for status, field, body in (
        (404, "rerank.artifact", {"rerank": {"artifact": "other"}}),
        (404, "rerank.recipe", {"rerank": {"recipe": "llamarec"}}),
        (422, "rerank.candidates", {"rerank": {"artifact": "chain", "candidates": 9}, "k": 10}),
        (422, "rerank.candidates", {"rerank": {"artifact": "chain", "candidates": 1001}}),
        (422, "rerank.depth", {"rerank": {"artifact": "chain", "depth": 9}}),
        (422, "rerank", {"rerank": {}}),
        (422, "rerank", {"rerank": "chain"}),
        (422, "k", {"explain": True, "k": 101}),
        (422, "explain", {"explain": 1}),
    ):
        answer = await served.client.post("/recommend", json={"history": served.named(HISTORY), **body})
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text
    popular = (
        await served.client.post("/recommend", json={"user_id": "nobody", "rerank": {"artifact": "chain"}})
    ).json()
    assert popular["source"] == "popular" and popular["rerank"] is None
