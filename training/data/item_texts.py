"""Texts of items for a text tower, made from the columns of a data set by a template."""

from __future__ import annotations

from typing import Any

import polars as pl

from modeling.text import plain_text
from modeling.text_template import TextTemplate
from training.data.dataset import Dataset
from training.data.report import DataError


def item_texts(dataset: Dataset, template: str) -> tuple[str, ...]:
    """The text of every item, in row order; names in a list are joined with a comma.

    Raises:
        DataError: no item has anything in a column that the template names.
    """
    parsed = TextTemplate.parse(template)
    given = dataset.items
    cells = {name: _cells(given[name]) for name in given.columns if name in parsed.columns}
    empty = [name for name in parsed.columns if not any(cells.get(name, ()))]
    if empty:
        held = [name for name in given.columns if name != "item_id" and any(_cells(given[name]))]
        raise DataError(
            f"items.text_template names {_in_braces(empty)}, and no item of {dataset.name} has it; its items have "
            f"{_in_braces(held)}"
        )
    return tuple(
        plain_text(parsed.fill(dict(zip(cells, row, strict=True)))) for row in zip(*cells.values(), strict=True)
    )


def _in_braces(names: list[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def _cells(column: pl.Series) -> list[str]:
    return [_written(value) for value in column.to_list()]


def _written(value: Any) -> str:
    """A cell as text; nothing for an empty one."""
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(filter(None, map(_written, value)))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format(value, ".15g")
    return plain_text(str(value))
