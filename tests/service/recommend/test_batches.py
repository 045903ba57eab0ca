"""Batches answer as single requests do, popular items are listed, and diverse answers are what their rule says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from index import FlatIndex
from service.errors import DeadlineExceeded, Overloaded
from service.observability.metrics import Metrics
from service.recommend.batches import Batches
from service.recommend.diversity import Diversity, choose
from testing.fake_parts import item_id
from testing.running import Running, running

NOTHING: list[Any] = []


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    async with running(user_cache_entries=0) as started:
        yield started


async def batch(anyo: Running, *requests: Any) -> Any:
    return await anyo.client.post("/recommend/batch", json={"requests": requests})


async def test_a_batch_answers_as_its_requests_do_one_by_one(anyo: Running) -> None:
    await anyo.client.post("/users/anna/events", json={"events": [{"item_id": item_id(5)}]})
    requests: list[Any] = [{"history": [item_id(row), item_id(row + 7)], "k": 1 + row % 9} for row in range(150)]
    requests += [
        {"user_id": "anna", "k": 4}, {"user_id": "nobody"}, {"history": ["unknown"]},
        {"history": [item_id(3)], "categories": ["none"]}, {"history": [item_id(3)], "artifact": "other"},
        {"history": [item_id(3)], "diversity": {"mmr": 0.5, "candidates": 5}},
        {"history": [item_id(3)], "diversity": {"mmr": 0.5, "per_category": 2}, "categories": ["travel"]},
    ]  # fmt: skip
    answer = await batch(anyo, *requests)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert len(results) == len(requests)
    for place, (request, result) in enumerate(zip(requests, results, strict=True)):
        alone = (await anyo.recommend(**request)).json()
        if "error" in alone:
            expected = alone["error"] | {"request_id": f"{answer.json()['request_id']}.{place}"}
            assert result == {"error": expected}
        else:
            varying = {"request_id", "timings_ms"}
            assert {k: v for k, v in result.items() if k not in varying} == {
                k: v for k, v in alone.items() if k not in varying
            }
    assert max(map(len, anyo.encoder.batches)) > 1, "entries share forward passes"
    assert anyo.metric("anyo_batch_entries_total", result="error") == 4
    assert anyo.metric("anyo_batch_entries_total", result="answered") == len(requests) - 4
    taken = {"request_id": results[0]["request_id"], "item_id": results[0]["items"][0]["item_id"]}
    assert (await anyo.client.post("/feedback", json=taken)).json()["rank"] == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requests": NOTHING}, "requests"),
        ({"requests": [{"history": ["a"]}] * 1001}, "requests"),
        ({"requests": [{"history": ["a"], "k": 1000}] * 21}, "body"),
        ({"requests": [{"history": ["a"]}, {"history": ["a"], "k": 0}]}, "requests.1.k"),
        ({"requests": [{"history": ["a"], "deep": {"x": 1}}]}, "requests.0.deep"),
        ({"users": NOTHING}, "requests"),
    ],
    ids=["none", "too many", "too many items", "wrong k", "unknown field", "missing"],
)
async def test_a_malformed_batch_is_refused_as_a_whole(anyo: Running, body: Any, field: str) -> None:
    answer = await anyo.client.post("/recommend/batch", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text


async def test_a_batch_larger_than_the_queue_is_answered_whole() -> None:
    async with running(max_batch_tokens=12, max_queued_tokens=12, user_cache_entries=0) as anyo:
        answer = await batch(anyo, *({"history": [item_id(row)] * 7} for row in range(40)))
        assert all("items" in result for result in answer.json()["results"])


async def test_places_are_shared_refused_entries_try_again_and_the_deadline_ends_them() -> None:
    batches, now, most = Batches(3, Metrics()), 0, 0

    async def entry(failures: list[int], number: int) -> int:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0)
        now -= 1
        if failures and failures.pop():
            raise Overloaded("full")
        return number

    def entries(count: int) -> Any:
        return [lambda number=number, once=[1]: entry(once, number) for number in range(count)]

    far = asyncio.get_running_loop().time() + 60
    assert await asyncio.gather(batches.run(entries(7), far), batches.run(entries(5), far)) == [
        list(range(7)), list(range(5)),
    ]  # fmt: skip
    assert most == 3
    late = await batches.run(entries(2), 0.0)
    assert [type(result) for result in late] == [DeadlineExceeded] * 2


async def test_popular_items_are_listed_by_category(anyo: Running) -> None:
    catalog = anyo.parts.catalog
    answer = await anyo.client.get("/popular", params={"k": 5, "category": "travel"})
    rows = [row for row in catalog.popular() if "travel" in catalog.categories[row]][:5]
    assert [item["item_id"] for item in answer.json()["items"]] == [catalog.item_ids[row] for row in rows]
    assert answer.json()["source"] == "popular" and answer.json()["items"][0]["score"] == catalog.popularity[rows[0]]
    assert (await anyo.client.get("/popular", params={"category": "none"})).status_code == 422
    assert (await anyo.client.get("/popular", params={"k": 0})).status_code == 422


async def test_a_diverse_answer_keeps_its_limit_and_the_scores(anyo: Running) -> None:
    catalog = anyo.parts.catalog
    plain = (await anyo.recommend(history=[item_id(3)], k=100)).json()["items"]
    scores = {item["item_id"]: item["score"] for item in plain}
    kept = (await anyo.recommend(history=[item_id(3)], k=8, diversity={"mmr": 0.0})).json()["items"]
    assert kept == plain[:8]
    few = (await anyo.recommend(history=[item_id(3)], k=8, diversity={"per_category": 2})).json()["items"]
    taken = [name for item in few for name in catalog.categories[catalog.row(item["item_id"]) or 0]]
    assert max(taken.count(name) for name in taken) == 2
    unlike = (await anyo.recommend(history=[item_id(3)], k=8, diversity={"mmr": 0.9})).json()
    assert unlike["items"][0] == plain[0] and unlike["items"][1:] != plain[1:8]
    assert all(item["score"] == scores[item["item_id"]] for item in unlike["items"])
    assert "diversify" in unlike["timings_ms"]


def test_the_choice_is_the_one_of_the_formula() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30, 6)).astype(np.float32)
    scores = np.sort(rng.random(30))[::-1]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen = [0]
    while len(chosen) < 10:
        rest = [place for place in range(30) if place not in chosen]
        chosen.append(max(rest, key=lambda place: 0.4 * relevance[place] - 0.6 * (unit[chosen] @ unit[place]).max()))
    wanted, index = Diversity(mmr=0.6), FlatIndex.build(vectors)
    assert choose(scores.tolist(), [()] * 30, 10, wanted, lambda: index.alike_to(vectors)) == chosen
    assert choose([], [], 10, wanted, lambda: index.alike_to(vectors[:0])) == NOTHING
