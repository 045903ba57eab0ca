"""The attributes of all items of a catalog, arranged so that a filter finds its rows without a look at every item.

A value of a string or a boolean has the list of its rows; numbers are sorted. A condition costs as much as the rows
that it finds, and one byte for each item of the catalog.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Set

import numpy as np

from index.base import Mask, RowArray
from index.filters.language import CATEGORIES, AttributeValue, Condition, Every, Filter, Kind, Value, typed

NOTHING: RowArray = np.empty(0, np.int64)


class _Values:
    """Rows of every string and boolean of one attribute."""

    def __init__(self) -> None:
        self._code_of: dict[Value, int] = {}
        self._codes, self._rows = array("q"), array("q")

    def add(self, value: Value, row: int) -> None:
        self._codes.append(self._code_of.setdefault(value, len(self._code_of)))
        self._rows.append(row)

    def close(self) -> None:
        codes = np.frombuffer(self._codes, np.int64)
        order = np.argsort(codes, kind="stable")
        self._by_code = np.frombuffer(self._rows, np.int64)[order]
        self._starts = np.searchsorted(codes[order], np.arange(len(self._code_of) + 1))
        del self._codes, self._rows

    def rows(self, value: Value) -> RowArray:
        code = self._code_of.get(value)
        return NOTHING if code is None else self._by_code[self._starts[code] : self._starts[code + 1]]


class _Numbers:
    """Rows of one attribute by its number, ascending."""

    def __init__(self) -> None:
        self._found, self._at = array("d"), array("q")

    def add(self, number: float, row: int) -> None:
        self._found.append(number)
        self._at.append(row)

    def close(self) -> None:
        numbers = np.frombuffer(self._found, np.float64)
        order = np.argsort(numbers, kind="stable")
        self._numbers, self._rows = numbers[order], np.frombuffer(self._at, np.int64)[order]
        del self._found, self._at

    def within(self, condition: Condition) -> RowArray:
        start, stop = 0, len(self._numbers)
        for bound, side in ((condition.at_least, "left"), (condition.above, "right")):
            if bound is not None:
                start = max(start, int(np.searchsorted(self._numbers, bound, side)))  # type: ignore[call-overload]
        for bound, side in ((condition.at_most, "right"), (condition.below, "left")):
            if bound is not None:
                stop = min(stop, int(np.searchsorted(self._numbers, bound, side)))  # type: ignore[call-overload]
        return self._rows[start:stop] if start < stop else NOTHING

    def rows(self, number: float) -> RowArray:
        return self.within(Condition("", at_least=number, at_most=number))


class AttributeTable:
    """The attributes of items 0..N-1.

    Args:
        size: N.
        attributes: of every item, in row order; nothing where no item has any.
        categories: rows by category.
    """

    def __init__(
        self, size: int, attributes: Iterable[Mapping[str, AttributeValue]], categories: Mapping[str, RowArray]
    ) -> None:
        self._size, self._categories = size, categories
        self._values: dict[str, _Values] = {}
        self._numbers: dict[str, _Numbers] = {}
        found: dict[str, set[Kind]] = {CATEGORIES: {"string"}}
        for row, named in enumerate(attributes):
            for name, value in named.items():
                for kind, content in map(typed, dict.fromkeys(value) if isinstance(value, tuple) else (value,)):
                    found.setdefault(name, set()).add(kind)
                    if kind == "number":
                        self._numbers.setdefault(name, _Numbers()).add(float(content), row)
                    else:
                        self._values.setdefault(name, _Values()).add((kind, content), row)
        for values in self._values.values():
            values.close()
        for numbers in self._numbers.values():
            numbers.close()
        self.kinds: Mapping[str, Set[Kind]] = found
        """Types of the values that each attribute has."""

    def rows(self, wanted: Filter) -> RowArray:
        """Rows, ascending, of the items that pass a filter."""
        return np.flatnonzero(self._mask(wanted))

    def _mask(self, wanted: Filter) -> Mask:
        if isinstance(wanted, Condition):
            return self._passing(wanted)
        found = self._mask(wanted.parts[0])
        for part in wanted.parts[1:]:
            if isinstance(wanted, Every):
                found &= self._mask(part)
            else:
                found |= self._mask(part)
        return found

    def _passing(self, condition: Condition) -> Mask:
        found = np.ones(self._size, bool)
        if condition.any_of is not None:
            found &= self._having(condition.name, condition.any_of)
        for value in condition.all_of or ():
            found &= self._having(condition.name, (value,))
        if condition.none_of is not None:
            found &= ~self._having(condition.name, condition.none_of)
        if condition.ranged:
            numbers, mask_N = self._numbers.get(condition.name), np.zeros(self._size, bool)
            if numbers is not None:
                mask_N[numbers.within(condition)] = True
            found &= mask_N
        return found

    def _having(self, name: str, values: Iterable[Value]) -> Mask:
        mask_N = np.zeros(self._size, bool)
        for value in values:
            mask_N[self._rows_of(name, value)] = True
        return mask_N

    def _rows_of(self, name: str, value: Value) -> RowArray:
        kind, content = value
        if name == CATEGORIES:
            return self._categories.get(str(content), NOTHING) if kind == "string" else NOTHING
        if kind == "number":
            return self._numbers[name].rows(float(content)) if name in self._numbers else NOTHING
        return self._values[name].rows(value) if name in self._values else NOTHING
