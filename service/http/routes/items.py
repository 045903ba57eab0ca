"""The catalog: find items by title, look one up, those close to it, the most popular. `item_changes` changes them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from index.base import ItemIndex, RowArray, SearchError
from index.filters.body import FILTER_OF, FilterBody
from index.filters.language import Filter
from index.live_catalog import LiveCatalog
from index.unavailable import SearchUnavailable
from service.engine.base import failed
from service.errors import AnyoError, Conflict, InvalidInput, UnknownName, shown
from service.http.middleware import request_info
from service.http.openapi import answers
from service.http.rights import Right, opened_by
from service.http.routes.common import Page, input_error, json_answer, page_of, service_of
from service.http.routes.item_fields import item_fields
from service.http.routes.recommend import answer_of
from service.http.schemas.items import Item, ItemList, SimilarAnswer
from service.http.schemas.recommend import FIELDS, MAX_K, RecommendAnswer
from service.recommend.base import Recommendation
from service.service import Service

MAX_NAME = 2000
router = APIRouter(tags=["items"])

MAX_FILTER = 4000  # characters: percent-encoded, they fit into the largest head of a request


class ItemsPage(Page):
    """The query of the item list."""

    artifact: str | None = Field(default=None, description="Whose catalog; the default artifact's where left out.")


class FilteredQuery(BaseModel):
    """A query with a filter and fields of items; unknown parameters are refused."""

    model_config = ConfigDict(extra="forbid")

    filter: str | None = Field(
        default=None, max_length=MAX_FILTER, description="The JSON of a `filter`, as `POST /recommend` takes it."
    )
    fields: str = Field(default="", max_length=MAX_FILTER, description=FIELDS + " With commas between them.")

    @property
    def field_names(self) -> list[str]:
        """The names in `fields`."""
        return [name for each in self.fields.split(",") if (name := each.strip())]

    @property
    def passing(self) -> Filter | None:
        """The filter; raises InvalidInput."""
        if self.filter is None:
            return None
        try:
            return FILTER_OF.validate_json(self.filter).plain()
        except ValidationError as error:
            mistake = input_error(error.errors(include_url=False), FilterBody)
            raise InvalidInput(f"filter: {mistake.message}", field="filter") from None


class SimilarQuery(FilteredQuery):
    """The query of similar items; unknown parameters are refused."""

    k: int = Field(default=10, ge=1, le=1000, description="How many items.")
    artifact: str | None = Field(default=None, description="Which dense artifact; the default one where left out.")


@router.get("/items", responses=answers(ItemList, 404, 422, 429, 503, 504))
@opened_by(Right.API)
async def items(request: Request, page: Annotated[ItemsPage, Query()]) -> Response:
    """List items whose title holds every word of `query`, the most popular first; hidden ones are not among them."""
    service = service_of(request)
    catalog = service.loaded(page.artifact).catalog
    # A rare word walks through every title of the catalog: not on the event loop.
    rows = await service.searches.run(partial(catalog.search, page.query, page.limit + 1, page.offset))
    rows = [row for row in rows if catalog.is_open(row)]  # withdrawn meanwhile
    found, following = page_of(rows, page)
    return json_answer({"items": [item_at(service, catalog, row) for row in found], "next": following})


class PopularQuery(FilteredQuery):
    """The query of the most popular items; unknown parameters are refused."""

    k: int = Field(default=10, ge=1, le=MAX_K, description="How many items.")
    category: str | None = Field(
        default=None, max_length=MAX_NAME, description="Only items of this category; its name is exact."
    )
    artifact: str | None = Field(default=None, description="Whose catalog; the default artifact's where left out.")


@router.get("/popular", responses=answers(RecommendAnswer, 404, 422, 429, 503, 504))
@opened_by(Right.API)
async def popular(request: Request, wanted: Annotated[PopularQuery, Query()]) -> Response:
    """List the items that were taken most often in the training data: the answer for a user of whom nothing is
    known."""
    service, info = service_of(request), request_info(request)
    recommender = service.loaded(wanted.artifact)
    info.recipe = recommender.parts.recipe
    fields = item_fields(wanted.field_names, recommender.catalog)
    rows, scores = await recommender.histories.most_popular(
        wanted.k, [] if wanted.category is None else [wanted.category], wanted.passing
    )
    answer = Recommendation(rows, scores, "popular", [], [])
    return json_answer(answer_of(service, answer, recommender, info.request_id, info.timings_ms(), fields))


@router.get("/items/{item_id:id}", responses=answers(Item, 404, 422, 503))
@opened_by(Right.API)
async def item(
    request: Request, item_id: Annotated[str, Path()], artifact: Annotated[str | None, Query()] = None
) -> Response:
    """Look one item up; `ETag` is its version."""
    service = service_of(request)
    recommender = service.loaded(artifact)
    row = recommender.catalog.row(item_id)
    if row is None:
        raise unknown(recommender.parts.name, recommender.catalog, item_id)
    answer = json_answer(item_at(service, recommender.catalog, row))
    answer.headers["ETag"] = f'"{version_of(service, item_id)}"'
    return answer


@router.get("/items/{item_id:id}/similar", responses=answers(SimilarAnswer, 404, 409, 422, 429, 503, 504))
@opened_by(Right.API)
async def similar(
    request: Request, item_id: Annotated[str, Path()], query: Annotated[SimilarQuery, Query()]
) -> Response:
    """The items whose vectors are closest to that of an item; of an artifact that counts interactions those that its
    table has for the item, which may be none."""
    service = service_of(request)
    recommender = service.recommender(query.artifact)
    catalog, index = recommender.catalog, recommender.items.index
    row = catalog.row(item_id)
    if row is None or index is None:
        raise unknown(recommender.parts.name, catalog, item_id)
    fields, wanted = item_fields(query.field_names, catalog), query.passing
    if wanted is not None:
        recommender.histories.filters.check(wanted)
    allowed = await recommender.histories.allowed(wanted)
    try:
        rows, scores = await service.searches.run(partial(_closest, index, row, query.k, allowed, wanted))
    except SearchUnavailable as error:
        raise failed(error) from error
    except SearchError:
        reason = recommender.items.refusals.get(item_id, "it is hidden")
        raise Conflict(f"item {shown(item_id)} has no vector here: {reason}", code="no_vector") from None
    near = [(each, score) for each, score in zip(rows, scores, strict=True) if each >= 0 and catalog.is_open(each)]
    items: list[dict[str, Any]] = [
        {"rank": rank, "item_id": catalog.item_ids[each], "title": catalog.titles[each], "score": score}
        for rank, (each, score) in enumerate(near, 1)
    ]
    fields.add_to(items, [each for each, _ in near], catalog)
    return json_answer({"item_id": item_id, "items": items})


def _closest(
    index: ItemIndex, row: int, k: int, allowed: RowArray | None, wanted: Filter | None
) -> tuple[list[int], list[float]]:
    scores_K, rows_K = index.similar(row, k, allowed, wanted)
    return rows_K.tolist(), scores_K.tolist()


def unknown(name: str, catalog: LiveCatalog, item_id: str) -> AnyoError:
    """Return the error about an item that there is not."""
    return UnknownName(
        f"item {shown(item_id)} is not in the catalog of {name!r} ({len(catalog)} items); "
        "GET /items?query=… finds items by title",
        code="unknown_item",
    )


def version_of(service: Service, item_id: str) -> int:
    """Return how often an item was changed."""
    record = service.items.records.get(item_id)
    return 0 if record is None else record.version


def item_at(service: Service, catalog: LiveCatalog, row: int) -> dict[str, Any]:
    """Return one item as it is answered."""
    item_id = catalog.item_ids[row]
    record = service.items.records.get(item_id)
    return {
        "item_id": item_id,
        "title": catalog.titles[row],
        "categories": catalog.categories[row],
        "popularity": int(catalog.popularity[row]),
        "attributes": dict(catalog.attributes(row)),
        "state": "hidden" if record is not None and record.content.state == "hidden" else "live",
        "version": 0 if record is None else record.version,
    }
