"""Rows of text that are no plain table: what they belong to stands above them, or their last cell holds separators."""

from __future__ import annotations

import re
from collections.abc import Sequence

import polars as pl

from training.data.importing.content import share

_LETTERS = r"[^\W\d_]{2}"
_MARKER = r"^([^\s,;|:]+):\s*$"
_NUMBER_OR_NOTHING = r"^(-?\d+(\.\d+)?|NULL|\\N)?$"


def has_markers(lines: Sequence[str]) -> bool:
    """Whether the first line holds one name and a colon, and rows follow: `17:` above the ratings of film 17."""
    return bool(lines and re.match(_MARKER, lines[0]) and any(not re.match(_MARKER, line) for line in lines))


def rows_below_markers(body: bytes, separator: str) -> tuple[bytes, pl.Series]:
    """The rows with the name above them as a last cell, and the number of every row's line (from 1)."""
    lines = pl.Series("line", body.decode("utf-8", "replace").split("\n"))
    marker = lines.str.extract(_MARKER)
    rows = pl.DataFrame({"line": lines, "above": marker.fill_null(strategy="forward")}).with_row_index("number", 1)
    rows = rows.filter(marker.is_null() & (lines.str.strip_chars() != ""))
    text = rows.select(pl.concat_str("line", "above", separator=separator)).to_series()
    return ("\n".join(text) + "\n").encode(), rows["number"].cast(pl.Int64)


def rest_in_last(body: bytes, separator: str, width: int) -> pl.DataFrame | None:
    """Rows whose last cell holds separators, without quotes around it: everything from the last column on is one cell.

    None where that is not certain. It is where all cells before are numbers or words for nothing, and the last is text.
    """
    lines = pl.Series("line", body.decode("utf-8", "replace").split("\n"))
    lines = lines.filter(lines.str.strip_chars() != "")
    if width < 2 or b'"' in body or lines.is_empty():
        return None
    cells = lines.str.splitn(separator, width).struct.unnest()
    cells.columns = [f"column_{at}" for at in range(1, width + 1)]
    *before, last = cells.columns
    numbers = all(cells[name].str.contains(_NUMBER_OR_NOTHING).all() for name in before)
    if not numbers or cells[last].null_count() or share(cells[last], _LETTERS) < 0.5:
        return None
    return cells.with_columns(pl.col(name).replace("", None) for name in cells.columns)
