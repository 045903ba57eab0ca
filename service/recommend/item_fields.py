"""Fields of items that are asked for beside the title: whether there are such, and their values in an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from index.filters.checking import FilterError, unknown_attribute
from index.filters.language import CATEGORIES
from index.live_catalog import LiveCatalog

ATTRIBUTES = "attributes"


class UnknownField(FilterError):
    """No item has a field that was asked for; `place` is its place among those."""

    def __init__(self, error: FilterError, place: int) -> None:
        super().__init__(str(error), error.code)
        self.place = place


@dataclass(frozen=True, slots=True)
class ItemFields:
    """Fields of the items of one answer. Without any, items are answered as they are.

    Attributes:
        categories: whether each item has its categories.
        attributes: names of the attributes that each item has, where it has a value.
    """

    categories: bool = False
    attributes: tuple[str, ...] = ()

    def add_to(self, items: Sequence[dict[str, Any]], rows: Sequence[int | str], catalog: LiveCatalog) -> None:
        """Give items of an answer their fields.

        Args:
            items: as they are answered, one for each of `rows`.
            rows: of the catalog; a free title stands in place of a row, and gets no field.
            catalog: whose rows these are.
        """
        if not self.categories and not self.attributes:
            return
        for item, row in zip(items, rows, strict=True):
            if not isinstance(row, str):
                item |= self.of(row, catalog)

    def of(self, row: int, catalog: LiveCatalog) -> dict[str, Any]:
        """`categories` and `attributes` of one item, each where it was asked for."""
        found: dict[str, Any] = {CATEGORIES: catalog.categories[row]} if self.categories else {}
        if self.attributes:
            values = catalog.attributes(row)
            found[ATTRIBUTES] = {name: values[name] for name in self.attributes if name in values}
        return found


def item_fields(names: Sequence[str], catalog: LiveCatalog) -> ItemFields:
    """Return the fields that are asked for by name; raises `UnknownField` for one that no item has."""
    for place, name in enumerate(names):
        if name != CATEGORIES and not catalog.kinds(name):
            raise UnknownField(unknown_attribute(name, catalog.known_attributes), place)
    attributes = dict.fromkeys(name for name in names if name != CATEGORIES)
    return ItemFields(CATEGORIES in names, tuple(attributes))
