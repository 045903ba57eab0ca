"""Columns of a raw table given their types: each reader returns the typed column and which rows are wrong.

A null is a cell that was empty or absent; a *wrong* row held a value of another kind (a number as title,
"soon" as timestamp). What to do about either is for `training.data.format` to say.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from modeling.text import plain_text
from training.data.report import DataError

Column = tuple[pl.Series, pl.Series]  # values, and a Boolean per row: the cell held a wrong kind of value

_MICROSECONDS = 1_000_000
EXACT_IN_FLOAT32 = 2**24  # up to here every whole number has a place
LONGEST_LIST = 10_000  # characters of a list that stands in a cell of text
NOTHING = ("NULL", "\\N", "NaN", "nan", "<NA>", "N/A")
"""Words that databases and pandas write where there is nothing."""
UNITS = {"seconds": 1e8, "milliseconds": 1e11, "microseconds": 1e14, "nanoseconds": 1e17}
"""Smallest time since 1970 that is read in each unit (a date in 1973); the unit covers up to 100 times that value."""


def ids(column: pl.Series, file: str) -> Column:
    """Identifiers: text as it stands, or integers (written in decimal)."""
    if column.dtype == pl.Object:
        return _by_value(column, pl.String, _id)
    if column.dtype.is_integer():
        return column.cast(pl.String), _none_wrong(column)
    if column.dtype == pl.String:
        return column.set(column == "", None), _none_wrong(column)
    raise _wrong_type(column, file, "text or integers")


def text(column: pl.Series, file: str) -> Column:
    """Plain text, as models read it (`modeling.text`); nothing left means null."""
    if column.dtype == pl.Object:
        values, wrong = _by_value(column, pl.String, _text)
    elif column.dtype in (pl.String, pl.Null):
        values, wrong = column.cast(pl.String).map_elements(plain_text, pl.String), _none_wrong(column)
    else:
        raise _wrong_type(column, file, "text")
    return values.set(values.is_in(["", *NOTHING]), None), wrong


def loose_text(column: pl.Series, file: str) -> Column:
    """As `text`, of more kinds: lists are joined, numbers written out, objects become `name: value; …`."""
    if column.dtype == pl.Object or column.dtype.is_nested():
        values, wrong = _by_value(column, pl.String, _loose_text)
        return text(values, file)[0], wrong
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        return column.cast(pl.String), _none_wrong(column)
    return text(column, file)


def times(column: pl.Series, file: str) -> Column:
    """Times as numbers: numbers as they stand, ISO 8601 dates and times as seconds since 1970 (UTC).

    Int64 where every value is whole, Float64 otherwise. Text is read as numbers unless more rows read as
    dates.
    """
    if isinstance(column.dtype, pl.Datetime | pl.Date):
        values = column.dt.epoch("us").cast(pl.Float64) / _MICROSECONDS
        return _whole_if_possible(values), _none_wrong(column)
    if column.dtype == pl.Object:
        column, not_a_time = _by_value(column, pl.String, _time)
        values, wrong = times(column, file)
        return values, wrong | not_a_time
    if column.dtype == pl.String:
        return _times_from_text(column.set(column.is_in(NOTHING), None))
    if column.dtype.is_integer():
        whole = column.cast(pl.Int64, strict=False)
        return whole, whole.is_null() & column.is_not_null()
    if column.dtype.is_float():
        finite = column.is_finite().fill_null(True)
        if column.dtype != pl.Float64 and bool((column.set(~finite, None).abs() > EXACT_IN_FLOAT32).any()):
            raise DataError(
                f"{file}: column {column.name} has type {column.dtype}, which rounds times of this size to steps of "
                "minutes; write it as Int64 or Float64"
            )
        return _whole_if_possible(column.cast(pl.Float64).set(~finite, None)), ~finite
    raise _wrong_type(column, file, "numbers or dates")


def of_another_unit(values: pl.Series) -> tuple[pl.Series, str]:
    """Which times are in another unit than most, and the units in words; none and "" where all are in one.

    Told by size: seconds since 1970 have nine or ten digits, milliseconds twelve or thirteen, and so on. Times that are
    in none of these ranges (positions, years) are of no unit.
    """
    masks = {unit: ((values >= start) & (values < 100 * start)).fill_null(False) for unit, start in UNITS.items()}
    counts = {unit: int(mask.sum()) for unit, mask in masks.items() if mask.any()}
    if len(counts) < 2:
        return _none_wrong(values), ""
    most = max(counts, key=lambda unit: counts[unit])
    others = [unit for unit in counts if unit != most]
    return pl.Series(np.any([masks[unit].to_numpy() for unit in others], axis=0)), f"{', '.join(others)} beside {most}"


def numbers(column: pl.Series, file: str) -> Column:
    """Decimal numbers (a rating), finite."""
    if column.dtype == pl.Object:
        return _by_value(column, pl.Float64, _number)
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise _wrong_type(column, file, "numbers")
    values = column.cast(pl.Float64, strict=False)
    values = values.set(~values.is_finite().fill_null(False), None)
    return values, values.is_null() & column.is_not_null()


def labels(column: pl.Series, file: str) -> Column:
    """Lists of names: a list, or text with `|` between names; null means none."""
    if column.dtype == pl.Object:
        return _by_value(column, pl.List(pl.String), _labels)
    if column.dtype == pl.List(pl.String):
        values = column.fill_null([]).list.drop_nulls()
        return values, _none_wrong(column)
    if column.dtype in (pl.String, pl.Null) or isinstance(column.dtype, pl.List):
        return _by_value(column, pl.List(pl.String), _labels)
    raise _wrong_type(column, file, "lists of text")


def flags(column: pl.Series, file: str) -> Column:
    """Yes or no: Booleans, or the words true and false; null means false."""
    if column.dtype == pl.Boolean:
        return column.fill_null(False), _none_wrong(column)
    if column.dtype in (pl.Object, pl.String, pl.Null):
        values, wrong = _by_value(column, pl.Boolean, _flag)
        return values.fill_null(False), wrong
    raise _wrong_type(column, file, "true or false")


def anything(column: pl.Series) -> pl.Series | None:
    """A column the format does not know, with the type all its values share; None where they share none."""
    if column.dtype != pl.Object:
        return column
    values = column.to_list()
    kinds = {type(value) for value in values if value is not None}
    for wanted, dtype in (
        ({str}, pl.String),
        ({bool}, pl.Boolean),
        ({int}, pl.Int64),
        ({int, float}, pl.Float64),
    ):
        if kinds <= wanted:
            return pl.Series(column.name, values, dtype=dtype)
    if kinds == {list} and all(isinstance(name, str) for value in values for name in value or ()):
        return pl.Series(column.name, values, dtype=pl.List(pl.String))
    return None


def _times_from_text(column: pl.Series) -> Column:
    whole = column.cast(pl.Int64, strict=False)
    if whole.null_count() == column.null_count():
        return whole, _none_wrong(column)
    decimal = column.cast(pl.Float64, strict=False)
    decimal = decimal.set(~decimal.is_finite().fill_null(False), None)
    dates, _ = _by_value(column, pl.Float64, _date)
    if dates.null_count() < decimal.null_count():
        decimal = dates
    return _whole_if_possible(decimal), decimal.is_null() & column.is_not_null()


def _whole_if_possible(values: pl.Series) -> pl.Series:
    whole = values.cast(pl.Int64, strict=False)
    return whole if (whole.cast(pl.Float64) == values).all() else values


def _none_wrong(column: pl.Series) -> pl.Series:
    return pl.Series(np.zeros(len(column), dtype=bool))


def _wrong_type(column: pl.Series, file: str, expected: str) -> DataError:
    return DataError(f"{file}: column {column.name} has type {column.dtype}; expected {expected}")


def _by_value(column: pl.Series, dtype: Any, read: Callable[[Any], Any]) -> Column:
    """Apply `read` to each value; a ValueError marks the row as wrong."""
    values: list[Any] = []
    wrong: list[bool] = []
    for value in column.to_list():
        try:
            values.append(read(value))
            wrong.append(False)
        except ValueError:
            values.append(None)
            wrong.append(True)
    return pl.Series(column.name, values, dtype=dtype), pl.Series(wrong, dtype=pl.Boolean)


def _id(value: Any) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, str):
        return value or None
    raise ValueError


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else plain_text(value)
    raise ValueError


def _loose_text(value: Any) -> str | None:
    if isinstance(value, list):
        return " ".join(filter(None, map(_loose_text, value)))
    if isinstance(value, dict):
        parts = {name: _loose_text(inner) for name, inner in value.items()}
        return "; ".join(f"{name}: {text}" for name, text in parts.items() if text)
    return _text(str(value) if isinstance(value, int | float) else value)


def _time(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str | None):
        raise ValueError
    return None if value is None or value == "" else str(value)


def _date(value: Any) -> float | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _labels(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        written = _list_in_text(value) if value.lstrip().startswith("[") else None
        if written is not None:
            return _labels(written)
        return [name.strip() for name in value.split("|") if name.strip()]
    if isinstance(value, list):  # of names, or of lists of names, as paths in a tree of categories
        inner = [_labels(name) if isinstance(name, list) else [_own_name(name)] for name in value if name is not None]
        names = [name for part in inner for name in part]
        if all(isinstance(name, str) for name in names):
            return list(dict.fromkeys(name.strip() for name in names if name.strip()))
    raise ValueError


def _own_name(value: Any) -> Any:
    """The name of an object that has one, as `{"id": 16, "name": "Animation"}`."""
    return value.get("name") if isinstance(value, dict) else value


def _list_in_text(value: str) -> list[Any] | None:
    """A list as JSON or Python writes it; None for other text, such as "[REC]"."""
    try:
        found = ast.literal_eval(value.strip()) if len(value) < LONGEST_LIST else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    return found if isinstance(found, list) else None


def _flag(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    words = {"true": True, "false": False, "1": True, "0": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise ValueError
