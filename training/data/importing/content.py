"""Recognition of columns by their cells, where their names say nothing."""

from __future__ import annotations

import polars as pl

from training.data.columns import NOTHING, UNITS

_CELLS_ASKED = 100_000
_OLDEST, _NEWEST = 6e8, 2.5e9  # seconds since 1970: 1989 and 2049


def share(column: pl.Series, pattern: str) -> float:
    """Share of the cells that are text of a pattern; 0 where there are none."""
    texts = column.cast(pl.String, strict=False).drop_nulls() if not column.dtype.is_nested() else column.head(0)
    matching = texts.str.strip_chars().str.contains(pattern).mean() if len(texts) else None
    return float(matching or 0.0)  # type: ignore[arg-type]


def is_epoch(column: pl.Series) -> bool:
    """Whether all cells are times counted from 1970, in seconds or a smaller unit."""
    values = column.cast(pl.Float64, strict=False)
    if values.is_empty() or values.null_count():
        return False
    least, most = float(values.min()), float(values.max())  # type: ignore[arg-type]
    scales = [start / UNITS["seconds"] for start in UNITS.values()]
    return any(_OLDEST * scale <= least and most <= _NEWEST * scale for scale in scales)


def mostly_empty(column: pl.Series) -> bool:
    """Whether more than half of the cells hold nothing, or a word for it; of a long column some cells are asked."""
    column = column.gather_every(max(1, len(column) // _CELLS_ASKED))
    if column.dtype != pl.String:
        return column.null_count() > 0.5 * len(column)
    nothing = column.is_null() | column.str.strip_chars().is_in(["", "NA", *NOTHING])
    return bool(nothing.sum() > 0.5 * len(column))
