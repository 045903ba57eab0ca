"""Filters: conditions on typed attributes of an item, joined by and/or. Plain values, equal where they mean
the same: parts and values are kept in one order and none twice.

An attribute is a string, a number, true or false, or a list of strings. Values of different types are different: 1 is
neither true nor "1". An item without an attribute passes no condition on it but ``none_of``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Literal

AttributeValue = str | int | float | bool | tuple[str, ...]
Kind = Literal["string", "number", "boolean"]
Value = tuple[Kind, str | float | bool]
"""A value and its type, which Python's own equality would not tell apart."""

CATEGORIES = "categories"
"""The name under which a filter reads the categories of an item, as a list of strings."""


def typed(value: str | float | bool) -> Value:
    """A value with its type."""
    if isinstance(value, bool):
        return "boolean", value
    return ("string", value) if isinstance(value, str) else ("number", float(value))


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on one attribute; what is None is not asked for, and all that is given must hold.

    Attributes:
        name: of the attribute.
        any_of: the attribute is, or its list holds, one of these at least.
        all_of: its list holds all of these.
        none_of: the attribute is, or its list holds, none of these.
        at_least, above, at_most, below: the attribute is a number within these bounds.
    """

    name: str
    any_of: tuple[Value, ...] | None = None
    all_of: tuple[Value, ...] | None = None
    none_of: tuple[Value, ...] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        """Bring values in one order."""
        for field in ("any_of", "all_of", "none_of"):
            values: tuple[Value, ...] | None = getattr(self, field)
            if values is not None:
                object.__setattr__(self, field, tuple(sorted(set(values), key=repr)))

    @property
    def ranged(self) -> bool:
        """Whether it asks for a number within bounds."""
        return any(bound is not None for bound in (self.at_least, self.above, self.at_most, self.below))

    def holds(self, values: Set[Value]) -> bool:
        """Whether the values of an item's attribute pass."""
        if self.any_of is not None and values.isdisjoint(self.any_of):
            return False
        if self.all_of is not None and not values.issuperset(self.all_of):  # type: ignore[attr-defined]
            return False
        if self.none_of is not None and not values.isdisjoint(self.none_of):
            return False
        return not self.ranged or any(kind == "number" and self._within(float(value)) for kind, value in values)

    def _within(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


@dataclass(frozen=True, slots=True)
class Every:
    """Passed by what passes all parts; made by `every`."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """Passed by what passes one part at least; made by `some`."""

    parts: tuple[Filter, ...]


Filter = Condition | Every | Some


def every(parts: Iterable[Filter]) -> Filter:
    """The filter that asks for all parts, at least one."""
    found = _flat(parts, Every)
    return found[0] if len(found) == 1 else Every(found)


def some(parts: Iterable[Filter]) -> Filter:
    """The filter that asks for one of the parts, at least one."""
    found = _flat(parts, Some)
    return found[0] if len(found) == 1 else Some(found)


def _flat(parts: Iterable[Filter], kind: type[Every] | type[Some]) -> tuple[Filter, ...]:
    flat = {inner for part in parts for inner in (part.parts if isinstance(part, kind) else (part,))}
    return tuple(sorted(flat, key=repr))


def in_categories(names: Iterable[str]) -> Condition:
    """The filter of items in at least one category."""
    return Condition(CATEGORIES, any_of=tuple(map(typed, names)))


def conditions(wanted: Filter) -> Iterator[Condition]:
    """All conditions of a filter."""
    if isinstance(wanted, Condition):
        yield wanted
    else:
        for part in wanted.parts:
            yield from conditions(part)


def values_of(name: str, attributes: Mapping[str, AttributeValue], categories: Iterable[str]) -> frozenset[Value]:
    """The values that an item has under a name."""
    if name == CATEGORIES:
        return frozenset(map(typed, categories))
    value = attributes.get(name)
    if value is None:
        return frozenset()
    return frozenset(map(typed, value)) if isinstance(value, tuple) else frozenset((typed(value),))


def matches(wanted: Filter, attributes: Mapping[str, AttributeValue], categories: Iterable[str]) -> bool:
    """Whether an item passes a filter."""
    if isinstance(wanted, Condition):
        return wanted.holds(values_of(wanted.name, attributes, categories))
    found = (matches(part, attributes, categories) for part in wanted.parts)
    return all(found) if isinstance(wanted, Every) else any(found)
