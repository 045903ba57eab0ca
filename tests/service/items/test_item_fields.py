"""`fields` of a request: items of every kind of answer have the categories and attributes that were asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testing.fake_parts import CATEGORIES, item_id
from testing.fake_writer import make_generative_parts
from testing.running import Running, running
from tests.service.items.test_filters import answer, attributes_of, parts_with_attributes

PLAIN = {"rank", "item_id", "title", "score"}
HISTORY = [item_id(3), item_id(8)]
ASKED = ["price", "categories", "tags", "price"]


def wanted(name: str) -> dict[str, Any]:
    """The fields of an item of the artifact, as JSON has them."""
    row = int(name.removeprefix("item-"))
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in attributes_of(row).items()}
    attributes = {key: value for key, value in values.items() if key in ASKED}
    return {"categories": [CATEGORIES[row % 3]], "attributes": attributes}


async def every_answer(anyo: Running, fields: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The items of every way of answering."""
    ask: dict[str, Any] = {"k": 30, **({"fields": fields} if fields else {})}
    query: dict[str, Any] = {"k": 30, **({"fields": " , ".join(fields)} if fields else {})}
    candidates = {"candidates": [item_id(row) for row in range(30)], **{key: ask[key] for key in ask if key != "k"}}
    pair = await answer(anyo, "/compare", history=HISTORY, **ask)
    streamed = await anyo.client.post("/recommend/generative?stream=true", json={"history": HISTORY, **ask})
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    batch = await answer(anyo, "/recommend/batch", requests=[{"history": HISTORY, **ask}, {"user_id": "nobody", **ask}])
    found = {
        "recommend": await answer(anyo, "/recommend", history=HISTORY, **ask),
        "again": await answer(anyo, "/recommend", history=HISTORY, **ask),
        "reranked": await answer(anyo, "/recommend", history=HISTORY, rerank={"artifact": "fake"}, **ask),
        "written": await answer(anyo, "/recommend/generative", history=HISTORY, **ask),
        "streamed": events[-1],
        "compared, dense": pair["dense"],
        "compared, written": pair["generative"],
        "batch": batch["results"][0],
        "popular in a batch": batch["results"][1],
        "rank": await answer(anyo, "/rank", history=HISTORY, **candidates),
        "similar": (await anyo.client.get(f"/items/{item_id(3)}/similar", params=query)).json(),
        "most popular": (await anyo.client.get("/popular", params=query)).json(),
    }
    return {way: body["items"] for way, body in found.items()}


async def test_items_of_every_answer_have_the_fields_that_were_asked_for_and_no_others() -> None:
    parts = parts_with_attributes()
    async with running(parts, generative=make_generative_parts(parts)) as anyo:
        for way, items in (await every_answer(anyo, ASKED)).items():
            assert len(items) == 30, way
            for item in items:
                assert {key: item[key] for key in item.keys() - PLAIN} == wanted(item["item_id"]), way
        for way, items in (await every_answer(anyo, [])).items():
            assert all(set(item) == PLAIN for item in items), way
        (alone,) = (await answer(anyo, "/recommend", history=HISTORY, k=1, fields=["number"]))["items"]
        assert set(alone) - PLAIN == {"attributes"}
        ranked = await answer(
            anyo,
            "/rank",
            history=HISTORY,
            candidates=[item_id(9), {"title": "a thing"}],
            fields=["categories", "price"],
        )
        of_item, of_title = sorted(ranked["items"], key=lambda item: item["item_id"] is None)
        assert (of_item["categories"], of_item["attributes"]) == ([CATEGORIES[0]], {}), "an item without attributes"
        assert set(of_title) == PLAIN, "a free title has no fields"


async def test_fields_of_a_changed_item_are_those_it_has_now() -> None:
    async with running(parts_with_attributes(), item_store="sqlite:///:memory:") as anyo:
        changed = {"title": "A new thing", "categories": ["art"], "attributes": {"colour": "red", "price": 2.5}}
        assert (await anyo.client.put(f"/items/{item_id(5)}", json=changed)).status_code == 200
        found = await answer(
            anyo, "/rank", history=HISTORY, candidates=[item_id(5)], fields=["colour", "price", "categories", "number"]
        )
        (item,) = found["items"]
        assert item["categories"] == ["art"] and item["attributes"] == {"colour": "red", "price": 2.5}


async def test_a_field_that_no_item_has_is_refused_with_those_that_there_are() -> None:
    parts = parts_with_attributes()
    known = "is not in the catalog; known are categories, in_stock, language, number, price, tags"
    async with running(parts, generative=make_generative_parts(parts)) as anyo:
        ask: dict[str, Any] = {"history": HISTORY, "fields": ["price", "prise"]}
        for path, more in (
            ("/recommend", {}), ("/recommend/generative", {}), ("/recommend/generative?stream=true", {}),
            ("/compare", {}), ("/rank", {"candidates": [item_id(1)]}),
        ):  # fmt: skip
            error = (await answer(anyo, path, 422, **ask, **more))["error"]
            assert (error["code"], error["field"]) == ("unknown_attribute", "fields.1"), path
            assert error["message"] == f"attribute 'prise' {known}"
        for path in (f"/items/{item_id(3)}/similar", "/popular"):
            error = (await anyo.client.get(path, params={"fields": "price,prise"})).json()["error"]
            assert (error["code"], error["message"]) == ("unknown_attribute", f"attribute 'prise' {known}")
        right, wrong = (await answer(anyo, "/recommend/batch", requests=[{"history": HISTORY}, ask]))["results"]
        assert len(right["items"]) == 10 and wrong["error"]["code"] == "unknown_attribute"
        assert anyo.encoder.batches and len(anyo.encoder.batches) <= 2, "what is refused is not computed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [("price", "valid array"), ([1], "valid string"), ([""], "at least 1 character"), (["x" * 65], "at most 64"),
     (["price"] * 66, "at most 65")],
    ids=["a text", "a number", "blank", "long", "many"],
)  # fmt: skip
async def test_fields_are_a_short_list_of_names(fields: Any, message: str) -> None:
    async with running() as anyo:
        error = (await answer(anyo, "/recommend", 422, history=HISTORY, fields=fields))["error"]
        assert error["code"] == "invalid_input" and error["field"].startswith("fields") and message in error["message"]
