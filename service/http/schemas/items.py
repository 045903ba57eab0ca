"""Bodies of the catalog."""

from __future__ import annotations

from typing import Any, ClassVar

from service.http.schemas.base import Answer


class Item(Answer):
    """An item of the catalog."""

    item_id: str
    title: str
    categories: list[str]
    popularity: int

    example: ClassVar[dict[str, Any]] = {
        "item_id": "d-017",
        "title": "The Lighthouse at Cape Sorrow",
        "categories": ["mystery"],
        "popularity": 42,
    }


class ItemList(Answer):
    """A page of items; `next` is the offset of the next page, or null."""

    items: list[Item]
    next: int | None

    example: ClassVar[dict[str, Any]] = {"items": [Item.example], "next": 20}
