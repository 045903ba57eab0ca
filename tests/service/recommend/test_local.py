"""Recommendations without the service: filters and errors, beside what the service answers."""

from __future__ import annotations

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


def test_fewer_are_given_where_fewer_are_eligible() -> None:
    parts = make_parts(items=12)
    taken = list(parts.catalog.item_ids[:5])
    found = LocalRecommender(parts).recommend(taken, 12, exclude=[*parts.catalog.item_ids[5:9], "unknown"])
    assert {item.item_id for item in found} == set(parts.catalog.item_ids[9:])
    assert len(LocalRecommender(parts).recommend(taken, 100, exclude_seen=False)) == 12
