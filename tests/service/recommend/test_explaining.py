"""Explanations against counterfactuals that are asked for by hand, on a real artifact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testing.artifacts import ITEMS, LIMIT
from tests.service.recommend.test_ranking import EMPTY, HISTORY, Served, added, chain, dense, served, serving

__all__ = ["added", "chain", "dense", "served"]  # fixtures

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("length", [2, 5, LIMIT, LIMIT + 7])
async def test_influence_is_the_score_minus_that_without_the_item(served: Served, length: int) -> None:
    """Compared with requests for each history without one item, sent by hand."""
    history = np.random.default_rng(length).integers(0, ITEMS, size=length).tolist()
    before = served.metric("anyo_batch_requests_sum")
    answer = await served.recommend(history, k=4, explain=True)
    assert served.metric("anyo_batch_requests_sum") - before <= 1 + min(length, LIMIT), "one row for each item"
    found, items = answer["explanation"], [item["item_id"] for item in answer["items"]]
    read = history[-LIMIT:]
    assert [item["item_id"] for item in found["history"]] == served.named(read)
    assert found["influence"]["method"] == "leave_one_out" and found["artifact"]["name"] == "small"
    for place in range(len(read)):
        left = length - len(read) + place
        without = (await served.rank(items, history[:left] + history[left + 1 :])).json()["items"]
        score = {item["item_id"]: item["score"] for item in without}
        for values, item in zip(found["influence"]["values"], answer["items"], strict=True):
            assert values[place] == pytest.approx(item["score"] - score[item["item_id"]], abs=1e-5)


async def test_the_nearest_item_of_the_history_is_that_of_the_item_tower(served: Served) -> None:
    answer = await served.recommend(HISTORY, k=6, explain=True)
    unit_ND = served.model.item_vectors_ND / np.linalg.norm(served.model.item_vectors_ND, axis=1, keepdims=True)
    row_of = {item: row for row, item in enumerate(served.ids)}
    nearest = answer["explanation"]["nearest"]
    assert nearest["method"] == "item_vector_cosine"
    for item, value in zip(answer["items"], nearest["values"], strict=True):
        cosines = unit_ND[HISTORY] @ unit_ND[row_of[item["item_id"]]]
        assert value["place"] == int(cosines.argmax()) and value["cosine"] == pytest.approx(cosines.max(), abs=1e-5)


async def test_an_explanation_is_kept_for_other_answers_to_the_same_history(served: Served) -> None:
    first = await served.recommend(HISTORY, k=3, explain=True)
    computed, cached = (
        served.metric("anyo_batch_requests_sum"),
        served.metric("anyo_explanations_total", result="cached"),
    )
    second = await served.recommend(HISTORY, k=8, exclude=served.named([9]), explain=True)
    assert served.metric("anyo_batch_requests_sum") == computed, "nothing is read again"
    assert served.metric("anyo_explanations_total", result="cached") == cached + 1
    values = [explained["explanation"]["influence"]["values"] for explained in (first, second)]
    np.testing.assert_allclose(values[0], values[1][:3], atol=1e-6)
    other = await served.recommend([*HISTORY[1:], HISTORY[0]], k=3, explain=True)
    assert other["explanation"]["influence"]["values"] != values[0]
    alone = await served.recommend(HISTORY[:1], explain=True)
    assert alone["explanation"]["influence"]["values"] is None and alone["explanation"]["nearest"]["values"][0]
    assert "explanation" not in await served.recommend(HISTORY)


async def test_what_was_ranked_again_is_explained_by_whom_it_was_retrieved(served: Served) -> None:
    stage = {"artifact": "chain", "candidates": 40}
    plain = await served.recommend(HISTORY, k=40, explain=True)
    answer = await served.recommend(HISTORY, k=5, rerank=stage, explain=True)
    place_of = {item["item_id"]: place for place, item in enumerate(plain["items"])}
    for item, values in zip(answer["items"], answer["explanation"]["influence"]["values"], strict=True):
        expected = plain["explanation"]["influence"]["values"][place_of[item["item_id"]]]
        np.testing.assert_allclose(values, expected, atol=1e-6)
    popular = (await served.client.post("/recommend", json={"user_id": "nobody", "explain": True})).json()
    assert popular["explanation"] is None and popular["degraded"] == EMPTY


async def test_where_an_explanation_is_refused_the_items_are_answered(dense: Path) -> None:
    async with serving(dense, max_queued_tokens=64, max_batch_tokens=32) as anyo:
        plain = await anyo.recommend(list(range(20)), k=5)
        answer = await anyo.recommend(list(range(20)), k=5, explain=True)
        assert answer["items"] == plain["items"] and answer["explanation"] is None
        assert answer["degraded"] == ["explain"] and anyo.metric("anyo_explanations_total", result="degraded") == 1
