"""Attributes of items as a collection of Qdrant holds them, and filters as its conditions.

Every attribute has one field for each type of its values, so that "1", 1 and true stay different. Field names are made
here: Qdrant reads names as paths, and names of attributes hold any character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qdrant_client import models

from index.catalog import Catalog
from index.filters.language import CATEGORIES, Condition, Every, Filter, Kind, Value, values_of

PLAIN_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
SCHEMAS: Mapping[Kind, models.PayloadSchemaType] = {
    "string": models.PayloadSchemaType.KEYWORD,
    "number": models.PayloadSchemaType.FLOAT,
    "boolean": models.PayloadSchemaType.BOOL,
}
MOST_INDEXED = 100
"""Fields that the engine keeps an index of, categories first, then by name; it looks through others."""
NOTHING = models.HasIdCondition(has_id=[])


class Payload:
    """What a collection holds of a catalog beside the vectors.

    Args:
        catalog: whose attributes and categories they are.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        fields = sorted((name, kind) for name, kinds in catalog.table.kinds.items() for kind in kinds)
        self._fields: dict[tuple[str, Kind], str] = {
            (name, kind): f"{kind}_{name if PLAIN_NAME.fullmatch(name) else place}"
            for place, (name, kind) in enumerate(fields)
        }

    def of(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """The fields of items, with their ids for whoever looks into the collection."""
        return [{"item_id": self._catalog.item_ids[row], **self._values(row)} for row in rows]

    def _values(self, row: int) -> dict[str, list[Any]]:
        categories, attributes = self._catalog.categories[row], self._catalog.attributes(row)
        found: dict[str, list[Any]] = {}
        for name in (CATEGORIES, *attributes):
            for kind, value in sorted(values_of(name, attributes, categories), key=repr):
                found.setdefault(self._fields[name, kind], []).append(value)
        return found

    @property
    def indexed(self) -> dict[str, models.PayloadSchemaType]:
        """Fields that filters are quick on, and the types of their values."""
        chosen = sorted(self._fields, key=lambda field: (field[0] != CATEGORIES, field))[:MOST_INDEXED]
        return {self._fields[field]: SCHEMAS[field[1]] for field in chosen}

    def condition(self, wanted: Filter) -> models.Filter:
        """The same filter for Qdrant. Points without a field fail every condition on it but ``must_not``, as items
        without the attribute do."""
        if isinstance(wanted, Condition):
            return self._condition(wanted)
        parts: list[models.Condition] = [self.condition(part) for part in wanted.parts]
        return models.Filter(must=parts) if isinstance(wanted, Every) else models.Filter(should=parts)

    def _condition(self, wanted: Condition) -> models.Filter:
        must: list[models.Condition] = []
        if wanted.any_of is not None:
            must.append(models.Filter(should=self._equal(wanted.name, wanted.any_of) or [NOTHING]))
        for value in wanted.all_of or ():
            must += self._equal(wanted.name, [value]) or [NOTHING]
        if wanted.ranged:
            bounds = models.Range(gte=wanted.at_least, gt=wanted.above, lte=wanted.at_most, lt=wanted.below)
            field = self._fields.get((wanted.name, "number"))
            must.append(NOTHING if field is None else models.FieldCondition(key=field, range=bounds))
        none_of = self._equal(wanted.name, wanted.none_of or ())
        return models.Filter(must=must or None, must_not=none_of or None)

    def _equal(self, name: str, values: Sequence[Value]) -> list[models.Condition]:
        """Conditions of which one holds where the attribute is, or holds, one of the values; values of a type that no
        item has are left out."""
        texts = [str(value) for kind, value in values if kind == "string"]
        found: list[models.Condition] = []
        if texts and (field := self._fields.get((name, "string"))) is not None:
            found.append(models.FieldCondition(key=field, match=models.MatchAny(any=texts)))
        for kind, value in values:
            field = self._fields.get((name, kind))
            if field is None or kind == "string":
                continue
            if kind == "boolean":
                found.append(models.FieldCondition(key=field, match=models.MatchValue(value=bool(value))))
            else:  # a match takes whole numbers only
                exactly = models.Range(gte=float(value), lte=float(value))
                found.append(models.FieldCondition(key=field, range=exactly))
        return found
