"""A free title that is the title of an item leaves that item out of the answer, as its id would."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.recommend.local import LocalRecommender
from testing.fake_parts import item_id, make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Running, running

ITEMS = 12
ROUTES = {
    "dense": "/recommend",
    "generative": "/recommend/generative",
    "second stage": "/recommend",
}


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    parts = make_parts(items=ITEMS, reads_text=True)
    async with running(parts, generative=make_generative_parts(parts)) as started:
        yield started


def titled(anyo: Running, row: int) -> str:
    """The title of an item, full width and in capitals: equal by NFKC and case folding."""
    return "".join(
        chr(ord(each) + 0xFEE0) if each.isalnum() else each for each in anyo.parts.catalog.titles[row].upper()
    )


@pytest.mark.parametrize("way", ROUTES)
async def test_the_item_of_a_title_is_left_out(anyo: Running, way: str) -> None:
    stage = {"rerank": {"artifact": "fake", "candidates": ITEMS}} if way == "second stage" else {}

    async def answered(**body: Any) -> set[str]:
        answer = await anyo.client.post(ROUTES[way], json={"k": ITEMS, **stage, **body})
        assert answer.status_code == 200, answer.text
        return {item["item_id"] for item in answer.json()["items"]}

    everything = {item_id(row) for row in range(ITEMS)}
    history = [item_id(1), {"title": titled(anyo, 4)}, {"title": "Of no item"}]
    assert await answered(history=history) == everything - {item_id(1), item_id(4)}
    assert await answered(history=history, exclude_seen=False) == everything
    assert await answered(history=[{"title": titled(anyo, 7) + "s"}]) == everything, "another title"


async def test_a_ranking_keeps_the_candidates_that_were_given(anyo: Running) -> None:
    history, candidates = [{"title": titled(anyo, 4)}], [item_id(row) for row in range(ITEMS)]
    answer = await anyo.client.post("/rank", json={"history": history, "candidates": candidates})
    assert {item["item_id"] for item in answer.json()["items"]} == set(candidates)


async def test_the_python_api_leaves_out_what_the_service_does(anyo: Running) -> None:
    history = [item_id(1), {"title": titled(anyo, 4)}]
    served = (await anyo.client.post("/recommend", json={"history": history, "k": ITEMS})).json()["items"]
    found = LocalRecommender(anyo.parts).recommend(history, ITEMS)  # type: ignore[arg-type]
    assert [item.item_id for item in found] == [item["item_id"] for item in served] and len(found) == ITEMS - 2
