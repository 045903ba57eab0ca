"""Recommendations without the service: filters and errors, beside what the service answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from index.filters.stored import attributes_text
from service.artifacts.loading import LoadedArtifact
from service.recommend.local import LocalRecommender
from testing.fake_parts import CATEGORIES, make_parts
from testing.running import running


async def test_category_filters_are_those_of_the_service() -> None:
    parts = make_parts()
    local = LocalRecommender(parts)
    async with running(parts) as service:
        for categories in ([], [CATEGORIES[0]], [*CATEGORIES[1:]]):
            body = {"history": ["item-0001", "item-0007"], "k": 12, "categories": categories, "exclude": ["item-0003"]}
            served = (await service.client.post("/recommend", json=body)).json()["items"]
            found = local.recommend(**body)  # type: ignore[arg-type]
            assert [item.item_id for item in found] == [item["item_id"] for item in served] and len(found) == 12
            of = {item.item_id: parts.catalog.categories[parts.catalog.row(item.item_id) or 0] for item in found}
            assert not categories or all(set(names) & set(categories) for names in of.values())


FILTER = {"all": [{"attribute": "price", "at_most": 6}, {"attribute": "brand", "any_of": ["acme", "b"]}]}


def with_attributes() -> LoadedArtifact:
    """Prices and brands for the items of `make_parts`."""
    parts = make_parts()
    texts = tuple(
        attributes_text({"price": float(row % 11), "brand": "acme" if row % 7 else "zeta"})
        for row in range(len(parts.catalog))
    )
    return replace(parts, catalog=replace(parts.catalog, attribute_texts=texts))


async def test_filters_are_those_of_the_service_and_artifacts_name_their_attributes() -> None:
    parts = with_attributes()
    async with running(parts) as service:
        for categories in ([], [CATEGORIES[0]]):
            body = {"history": ["item-0001", "item-0007"], "k": 12, "categories": categories, "filter": FILTER}
            served = (await service.client.post("/recommend", json=body)).json()["items"]
            found = LocalRecommender(parts).recommend(**body)  # type: ignore[arg-type]
            assert [item.item_id for item in found] == [item["item_id"] for item in served] and found
            rows = [parts.catalog.row(item.item_id) or 0 for item in found]
            assert all(row % 11 <= 6 and row % 7 for row in rows)
        (row,) = (await service.client.get("/artifacts")).json()["items"]
        assert row["attributes"] == ["brand", "price"]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"attribute": "colour", "any_of": ["red"]},
            "attribute 'colour' is not in the catalog; known are categories",
        ),
        ({"attribute": "price", "any_of": ["red"]}, "attribute 'price' has values of type number, and the filter asks"),
        ({"attribute": "price"}, "a condition on an attribute needs one of any_of"),
        ({"attribute": "price", "at_most": "7"}, "filter: at_most: Input should be a valid number"),
    ],
)
def test_a_filter_that_cannot_be_asked_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocalRecommender(with_attributes()).recommend(["item-0001"], filter=wanted)


async def test_fields_are_those_of_the_service() -> None:
    parts = with_attributes()
    async with running(parts) as service:
        body = {"history": ["item-0001", "item-0007"], "k": 12, "fields": ["price", "categories"]}
        served = (await service.client.post("/recommend", json=body)).json()["items"]
    found = LocalRecommender(parts).recommend(**body)  # type: ignore[arg-type]
    assert [(list(item.categories or ()), item.attributes) for item in found] == [
        (item["categories"], item["attributes"]) for item in served
    ]
    (plain,) = LocalRecommender(parts).recommend(["item-0001"], 1)
    assert plain.categories is None and plain.attributes is None
    with pytest.raises(ValueError, match="attribute 'prise' is not in the catalog; known are categories, brand, price"):
        LocalRecommender(parts).recommend(["item-0001"], fields=["prise"])


def test_fewer_are_given_where_fewer_are_eligible() -> None:
    parts = make_parts(items=12)
    taken = list(parts.catalog.item_ids[:5])
    found = LocalRecommender(parts).recommend(taken, 12, exclude=[*parts.catalog.item_ids[5:9], "unknown"])
    assert {item.item_id for item in found} == set(parts.catalog.item_ids[9:])
    assert len(LocalRecommender(parts).recommend(taken, 100, exclude_seen=False)) == 12
