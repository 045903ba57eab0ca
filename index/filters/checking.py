"""Whether a filter can be asked of a catalog at all: its attributes exist, and its values are of their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from index.filters.language import CATEGORIES, Filter, Kind, conditions

NAMES_SHOWN = 20  # in messages
RANGES: tuple[Kind, ...] = ("number",)


class FilterError(ValueError):
    """A filter asks for what no item can have; ``code`` is ``unknown_attribute`` or ``wrong_type``."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def check_filter(wanted: Filter, kinds_of: Callable[[str], Set[Kind]], known: Callable[[], Sequence[str]]) -> None:
    """Look at every condition.

    Args:
        wanted: the filter.
        kinds_of: types of the values that items have under a name; none for an unknown name.
        known: names of all attributes, for messages.

    Raises:
        FilterError: no item has an attribute, or its values are of another type.
    """
    for condition in conditions(wanted):
        if condition.name == CATEGORIES and not condition.ranged:
            continue
        kinds = kinds_of(condition.name)
        if not kinds:
            raise unknown_attribute(condition.name, known())
        given = [kind for values in (condition.any_of, condition.all_of, condition.none_of)
                 for kind, _ in values or ()]  # fmt: skip
        wrong = next((kind for kind in (*given, *(RANGES if condition.ranged else ())) if kind not in kinds), None)
        if wrong is not None:
            raise FilterError(
                f"attribute {_shown(condition.name)} has values of type {' and '.join(sorted(kinds))}, and the "
                f"filter asks for a {wrong}",
                "wrong_type",
            )


def unknown_attribute(name: str, known: Sequence[str]) -> FilterError:
    """Return the error about an attribute that no item has, with the ones that there are."""
    some = ", ".join(known[:NAMES_SHOWN]) + (", …" if len(known) > NAMES_SHOWN else "")
    return FilterError(
        f"attribute {_shown(name)} is not in the catalog; "
        + (f"known are {CATEGORIES}, {some}" if known else f"its items have {CATEGORIES} only"),
        "unknown_attribute",
    )


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:80] + "…")
