"""The catalog: find items by title, look one up."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from index import Catalog
from service.errors import UnknownName, shown
from service.http.openapi import answers
from service.http.rights import Right, opened_by
from service.http.routes.common import Page, json_answer, page_of, service_of
from service.http.schemas.items import Item, ItemList

router = APIRouter(tags=["items"])


class ItemsPage(Page):
    """The query of the item list."""

    artifact: str | None = Field(default=None, description="Whose catalog; the default artifact's where left out.")


@router.get("/items", responses=answers(ItemList, 404, 422, 429, 503, 504))
@opened_by(Right.API)
async def items(request: Request, page: Annotated[ItemsPage, Query()]) -> Response:
    """List items whose title holds every word of `query`, the most popular first."""
    service = service_of(request)
    catalog = service.loaded(page.artifact).parts.catalog
    # A rare word walks through every title of the catalog: not on the event loop.
    rows = await service.searches.run(partial(catalog.search, page.query, page.limit + 1, page.offset))
    shown, following = page_of(rows, page)
    return json_answer({"items": [item_at(catalog, row) for row in shown], "next": following})


@router.get("/items/{item_id:id}", responses=answers(Item, 404, 422, 503))
@opened_by(Right.API)
async def item(
    request: Request, item_id: Annotated[str, Path()], artifact: Annotated[str | None, Query()] = None
) -> Response:
    """Look one item up."""
    parts = service_of(request).loaded(artifact).parts
    row = parts.catalog.row(item_id)
    if row is None:
        raise UnknownName(
            f"item {shown(item_id)} is not in the catalog of {parts.name!r} ({len(parts.catalog)} items); "
            "GET /items?query=… finds items by title",
            code="unknown_item",
        )
    return json_answer(item_at(parts.catalog, row))


def item_at(catalog: Catalog, row: int) -> dict[str, Any]:
    """Return one item as it is answered."""
    return {
        "item_id": catalog.item_ids[row],
        "title": catalog.titles[row],
        "categories": catalog.categories[row],
        "popularity": int(catalog.popularity[row]),
    }
