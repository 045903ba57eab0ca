"""Fields of items that a request asks for beside the title; a name that no item has is a 422."""

from __future__ import annotations

from collections.abc import Sequence

from index.live_catalog import LiveCatalog
from service.errors import InvalidInput
from service.recommend import item_fields as fields_of_items
from service.recommend.item_fields import ItemFields, UnknownField

PATH = "fields"
__all__ = ["ItemFields", "item_fields"]


def item_fields(names: Sequence[str], catalog: LiveCatalog) -> ItemFields:
    """Return the fields that a request asks for by name; raises InvalidInput for one that no item has."""
    try:
        return fields_of_items.item_fields(names, catalog)
    except UnknownField as error:
        raise InvalidInput(str(error), field=f"{PATH}.{error.place}", code=error.code) from None
