"""Filters by attributes hold in every kind of answer, also for items that change."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from index.filters.body import FilterBody
from index.filters.language import matches
from index.filters.stored import attributes_text
from service.artifacts.loading import LoadedArtifact
from testing.fake_parts import CATEGORIES, item_id, make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Running, running

ITEMS = 120
STORED: dict[str, Any] = {"item_store": "sqlite:///:memory:"}
LANGUAGES = ("en", "ja", "de")
CHEAP = {"attribute": "price", "at_least": 3, "below": 11.5}
FILTERS: list[dict[str, Any]] = [
    CHEAP,
    {"attribute": "tags", "all_of": ["odd", "third"]},
    {"attribute": "tags", "none_of": ["odd"]},
    {"attribute": "language", "any_of": ["ja", "de"]},
    {"attribute": "in_stock", "any_of": [True]},
    {"attribute": "categories", "any_of": [CATEGORIES[0]]},
    {"attribute": "number", "any_of": [7]},
    {"any": [{"all": [CHEAP, {"attribute": "language", "any_of": ["en"]}]}, {"attribute": "number", "above": 110}]},
    {"all": [{"attribute": "number", "at_most": 3}, {"attribute": "number", "above": 3}]},
]


def attributes_of(row: int) -> dict[str, Any]:
    tags = tuple(name for name, step in (("odd", 2), ("third", 3)) if row % step == 1)
    named = {"price": row / 4, "number": row, "language": LANGUAGES[row % 3], "in_stock": row % 5 == 0, "tags": tags}
    return {} if row % 10 == 9 else named


def parts_with_attributes() -> LoadedArtifact:
    parts = make_parts(items=ITEMS)
    texts = tuple(attributes_text(attributes_of(row)) for row in range(ITEMS))
    return dataclasses.replace(parts, catalog=dataclasses.replace(parts.catalog, attribute_texts=texts))


async def answer(anyo: Running, path: str, status: int = 200, **body: Any) -> Any:
    found = await anyo.client.post(path, json=body)
    assert found.status_code == status, found.text
    return found.json()


def named(found: Any) -> list[str]:
    return [item["item_id"] for item in found["items"]]


async def filtered(anyo: Running, wanted: dict[str, Any]) -> dict[str, list[str]]:
    """The ids of every way of answering; all of them, since k is more than there are."""
    history = [item_id(3)]
    whole: dict[str, Any] = {"k": 500, "exclude_seen": False, "filter": wanted}
    candidates = [item_id(row) for row in range(ITEMS)] + ["new"]
    ranked = await anyo.client.post("/rank", json={"history": history, "candidates": candidates, "filter": wanted})
    query: dict[str, Any] = {"k": 500, "filter": json.dumps(wanted)}
    similar = await anyo.client.get(f"/items/{item_id(3)}/similar", params=query)
    popular = await anyo.client.get("/popular", params=query)
    assert popular.status_code == 200, popular.text
    return {
        "recommend": named(await answer(anyo, "/recommend", history=history, **whole)),
        "popular": named(await answer(anyo, "/recommend", user_id="nobody", **whole)),
        "written": named(await answer(anyo, "/recommend/generative", history=history, **whole)),
        "popular, written": named(await answer(anyo, "/recommend/generative", user_id="nobody", **whole)),
        "most popular": named(popular.json()),
        "rank": named(ranked.json()) if ranked.status_code == 200 else [],
        "similar": [*named(similar.json()), item_id(3)],
    }


async def test_every_answer_holds_the_items_that_pass_and_no_others() -> None:
    parts = parts_with_attributes()
    async with running(parts, generative=make_generative_parts(parts), **STORED) as anyo:
        catalog = anyo.service.recommender(None).catalog
        changes: list[tuple[str, dict[str, Any] | None]] = [
            ("new", {"title": "New", "attributes": {"price": 5, "tags": ["odd", "third"], "in_stock": True}}),
            (item_id(14), {"title": "No more cheap", "attributes": {"price": 90, "language": "en"}}),
            (item_id(100), {"title": "Cheap now", "attributes": {"price": 4.5, "language": "ja"}}),
            (item_id(20), None),
        ]
        for change in (None, *changes):
            if change is not None and change[1] is not None:
                changed = await anyo.client.put(f"/items/{change[0]}", json=change[1])
                assert changed.status_code == 200, changed.text
            elif change is not None:
                assert (await anyo.client.delete(f"/items/{change[0]}")).status_code == 200
            for wanted in FILTERS:
                plain = FilterBody.model_validate(wanted).plain()
                rows = [row for name in (*map(item_id, range(ITEMS)), "new")
                        if (row := catalog.open_row(name)) is not None]  # fmt: skip
                expected = {catalog.item_ids[row] for row in rows
                            if matches(plain, catalog.attributes(row), catalog.categories[row])}  # fmt: skip
                for way, found in (await filtered(anyo, wanted)).items():
                    left = {"new"} if "written" in way else set()  # the writer knows trained items only
                    left |= {item_id(3)} if way == "similar" else set()
                    assert set(found) - left == expected - left, (change, wanted, way)


async def test_filters_and_categories_together_and_fewer_than_k_only_where_fewer_exist() -> None:
    async with running(parts_with_attributes()) as anyo:
        body: dict[str, Any] = {
            "history": [item_id(3)],
            "exclude_seen": False,
            "categories": [CATEGORIES[1]],
            "filter": CHEAP,
        }
        eligible = [row for row in range(12, 46) if row % 3 == 1 and row % 10 != 9]
        for k in (3, len(eligible), 100):
            found = named(await answer(anyo, "/recommend", k=k, **body))
            assert len(found) == min(k, len(eligible)) and set(found) <= set(map(item_id, eligible))
        best = named(await answer(anyo, "/recommend", k=5, **body))
        left = named(await answer(anyo, "/recommend", k=5, exclude=best[:2], **body))
        assert left[:3] == best[2:]


async def test_a_ranking_names_the_candidates_that_do_not_pass() -> None:
    async with running(parts_with_attributes()) as anyo:
        body: dict[str, Any] = {
            "history": [item_id(3)],
            "candidates": [item_id(20), item_id(1), {"title": "A free title"}],
        }
        found = await answer(anyo, "/rank", **body, filter=CHEAP)
        assert named(found) == [item_id(20)] and found["filtered_candidates"] == [item_id(1), "A free title"]
        none = await answer(anyo, "/rank", 422, **body, filter={"attribute": "price", "above": 1000})
        assert (none["error"]["code"], none["error"]["field"]) == ("no_usable_candidates", "filter")


async def test_a_filter_is_compiled_once_for_all_who_ask_and_after_a_change_only_followed() -> None:
    async with running(parts_with_attributes(), **STORED) as anyo:
        filters: Any = anyo.service.recommender(None).histories.filters
        table: Any = anyo.parts.catalog.table
        compiled: list[Any] = []
        rows = table.rows

        def counted(wanted: Any) -> Any:
            compiled.append(wanted)
            return rows(wanted)

        table.rows = counted
        mirrored = {"all": [{"attribute": "in_stock", "any_of": [False, True]}, CHEAP]}
        same = {"all": [CHEAP, {"attribute": "in_stock", "any_of": [True, False]}]}
        bodies: list[dict[str, Any]] = [
            {"history": [item_id(row)], "filter": each} for row in range(6) for each in (mirrored, same)
        ]
        await asyncio.gather(*(answer(anyo, "/recommend", **body) for body in bodies))
        assert len(compiled) == 1 and len(filters._compiled) == 1
        for number in range(3):
            await anyo.client.put(
                f"/items/new-{number}", json={"title": "T", "attributes": {"price": 4, "in_stock": True}}
            )
            assert f"new-{number}" in named(await answer(anyo, "/recommend", **bodies[0], k=200))
        assert len(compiled) == 1
        for number in range(300):
            wanted = {"attribute": "price", "at_most": number}
            await answer(anyo, "/recommend", history=[item_id(1)], k=1, filter=wanted)
        assert len(filters._compiled) == 256, "they are bounded"


def nested(depth: int) -> dict[str, Any]:
    return CHEAP if depth == 1 else {"all": [nested(depth - 1)]}


@pytest.mark.parametrize(
    ("wanted", "code", "message"),
    [
        (
            {"attribute": "prise", "at_most": 3},
            "unknown_attribute",
            "attribute 'prise' is not in the catalog; known are",
        ),
        ({"attribute": "language", "at_most": 3}, "wrong_type", "has values of type string"),
        ({"attribute": "price", "any_of": ["3"]}, "wrong_type", "has values of type number"),
        ({"attribute": "price"}, "invalid_input", "needs one of any_of"),
        ({"all": [CHEAP], "any": [CHEAP]}, "invalid_input", "one of attribute, all and any"),
        ({"all": [CHEAP], "at_most": 3}, "invalid_input", "at_most is for a filter with attribute"),
        ({"atribute": "price", "at_most": 3}, "invalid_input", "unknown field 'atribute'"),
        (nested(6), "invalid_input", "the filter has 6 levels; at most 5"),
        ({"any": [CHEAP] * 64}, "invalid_input", "65 parts; at most 64"),
        ({"attribute": "tags", "any_of": ["x"] * 501}, "invalid_input", "501 values; at most 500"),
        ({"attribute": "tags", "any_of": ["x" * 1000] * 21}, "invalid_input", "21000 characters"),
        ({"attribute": "tags", "any_of": []}, "invalid_input", "any_of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_cannot_be_asked_is_refused(wanted: dict[str, Any], code: str, message: str) -> None:
    async with running(parts_with_attributes()) as anyo:
        found = (await answer(anyo, "/recommend", 422, history=[item_id(1)], filter=wanted))["error"]
        assert found["code"] == code and found["field"].startswith("filter") and message in found["message"], found
        if len(json.dumps(wanted)) < 4000:
            similar = await anyo.client.get(f"/items/{item_id(1)}/similar", params={"filter": json.dumps(wanted)})
            assert (similar.status_code, similar.json()["error"]["code"]) == (422, code)


async def test_a_patch_keeps_the_attributes_that_an_item_was_trained_with() -> None:
    async with running(parts_with_attributes(), **STORED) as anyo:
        assert (await anyo.client.patch(f"/items/{item_id(4)}", json={"attributes": {"price": 99}})).status_code == 200
        found = (await anyo.client.get(f"/items/{item_id(4)}")).json()["attributes"]
        assert found == {**attributes_of(4), "price": 99, "tags": list(attributes_of(4)["tags"])}
        refused = await anyo.client.put("/items/n", json={"title": "N", "attributes": {"categories": ["x"]}})
        assert refused.status_code == 422 and "no attribute `categories`" in refused.text


def test_filtered_rows_hold_scores_of_the_whole_search() -> None:
    parts = parts_with_attributes()
    query_1D = parts.encoder.encode([parts.encoder.prepare([1, 2])])
    allowed = parts.catalog.table.rows(FilterBody.model_validate(CHEAP).plain())
    scores, rows = parts.index.search(query_1D, ITEMS)
    inside = np.isin(rows[0], allowed)
    found_scores, found = parts.index.search(query_1D, len(allowed), allowed=allowed)
    assert found[0].tolist() == rows[0][inside].tolist()
    np.testing.assert_allclose(found_scores[0], scores[0][inside], rtol=1e-5)
