"""Attributes of an item as a catalog file holds them: one JSON object as text, empty where it has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from index.filters.language import CATEGORIES, AttributeValue

MOST_ATTRIBUTES, MOST_VALUES = 64, 64  # of an item; in a list
LONGEST_NAME, LONGEST_VALUE = 64, 1000  # characters
LARGEST = 1e15  # integers up to it are exact everywhere


def attributes_text(attributes: Mapping[str, AttributeValue]) -> str:
    """Attributes as text; the same ones give the same text."""
    return json.dumps(dict(attributes), ensure_ascii=False, sort_keys=True) if attributes else ""


def read_attributes(text: str) -> dict[str, AttributeValue]:
    """Attributes in a text.

    Raises:
        ValueError: it is not what `attributes_text` writes, or holds more than an item may have.
    """
    if not text:
        return {}
    found = json.loads(text)
    if not isinstance(found, dict) or len(found) > MOST_ATTRIBUTES:
        raise ValueError(f"attributes are an object of at most {MOST_ATTRIBUTES} names")
    return {name: _checked(name, value) for name, value in found.items()}


def allowed_value(name: str, value: Any) -> bool:
    """Whether an item may have a value, lists as tuples or lists, under a name."""
    if name == CATEGORIES or not 1 <= len(name) <= LONGEST_NAME:
        return False
    if isinstance(value, (list, tuple)):
        return len(value) <= MOST_VALUES and all(isinstance(each, str) and len(each) <= LONGEST_VALUE for each in value)
    if isinstance(value, str):
        return len(value) <= LONGEST_VALUE
    return isinstance(value, bool) or (isinstance(value, (int, float)) and -LARGEST <= value <= LARGEST)


def _checked(name: str, value: Any) -> AttributeValue:
    if not allowed_value(name, value):
        raise ValueError(f"attribute {name[:LONGEST_NAME]!r} is no short text, number, true or false, or list of texts")
    return tuple(value) if isinstance(value, list) else value
