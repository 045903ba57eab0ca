"""Cells of ids, ratings, categories and text about items, given their types."""

from __future__ import annotations

import html

import polars as pl

from training.data import columns as read
from training.data.columns import NOTHING, Column
from training.data.importing.content import share
from training.data.report import DataError

_DECIMAL = r"^-?\d+\.0$"
_SIGNS = ("|", ", ", ",", ";", " > ", " / ")
_LOOKED_AT = 1000


def read_ids(column: pl.Series, file: str) -> Column:
    """Ids as text: spaces at the ends go, words for nothing too, and the `.0` that all have where a table had gaps."""
    if column.dtype.is_float():
        whole = column.cast(pl.Int64, strict=False)
        wrong = ((whole.cast(pl.Float64) != column) | whole.is_null()) & column.is_not_nan() & column.is_not_null()
        return whole.cast(pl.String), wrong.fill_null(False)
    if column.dtype.is_nested():
        raise DataError(f"{file}: column {column.name} holds lists or objects; ids are text or numbers")
    texts = column.cast(pl.String)
    if column.dtype.is_integer():
        return texts, pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
    texts = texts.str.strip_chars()
    texts = texts.set(texts.is_in(["", *NOTHING]), None)
    sample = texts.head(_LOOKED_AT)
    if share(sample, _DECIMAL) == 1 and share(texts, _DECIMAL) == 1:
        texts = texts.str.strip_suffix(".0")
    return texts, pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)


def read_ratings(column: pl.Series, file: str) -> Column:
    """Numbers; with a decimal comma where all have one."""
    if column.dtype == pl.String:
        column = column.str.strip_chars().replace("", None)
        if share(column.head(_LOOKED_AT), r"^-?\d+,\d+$") > 0 and share(column, r"^-?\d+(,\d+)?$") == 1:
            column = column.str.replace(",", ".", literal=True)
    return read.numbers(column, file)


def as_lists(column: pl.Series) -> pl.Series | None:
    """Lists of ids, given as lists or as their text; None where a cell holds one id."""
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String))
    if column.dtype != pl.String or share(column.head(_LOOKED_AT), r"(?s)^[\[(].*[\])]$") < 1:
        return None
    text = pl.col(column.name)
    inner = text.str.strip_chars("[]() ").str.replace_all(r"['\"]", "")
    at_commas = inner.str.split(",").list.eval(pl.element().str.strip_chars())
    quoted = text.str.extract_all(r"'[^']*'|\"[^\"]*\"").list.eval(
        pl.element().str.slice(1, pl.element().str.len_chars() - 2)
    )
    printed = ~text.str.contains(",", literal=True)  # as NumPy prints arrays
    lists = (
        pl.when(printed & text.str.contains(r"^\[\s*['\"]")).then(quoted)
        .when(printed & text.str.contains(r"^\[\s*\S+\s")).then(inner.str.extract_all(r"\S+"))
        .otherwise(at_commas)
    )  # fmt: skip
    return column.to_frame().select(lists.alias(column.name)).to_series()


def categories_separator(column: pl.Series) -> str:
    """Separator of the names in more than half of the cells; "" where a cell is one name or a list."""
    if column.dtype != pl.String:
        return ""
    texts = column.drop_nulls().head(10 * _LOOKED_AT)
    if texts.is_empty() or share(texts, r"^\[") > 0.5:
        return ""
    if texts.str.contains("|", literal=True).any():
        return "|"
    return next((sign for sign in _SIGNS if float(texts.str.contains(sign, literal=True).mean()) > 0.5), "")  # type: ignore[arg-type]


def read_categories(column: pl.Series, file: str, separator: str) -> Column:
    """Lists of names; `separator` is what stands between them in text."""
    if column.dtype == pl.String and separator:
        names = column.str.split(separator).list.eval(pl.element().str.strip_chars())
        names = names.list.eval(pl.element().filter(pl.element() != "")).list.unique(maintain_order=True)
        return names.fill_null([]), pl.repeat(False, len(column), dtype=pl.Boolean, eager=True)
    return read.labels(column if column.dtype.is_nested() else column.cast(pl.String), file)


def read_text(column: pl.Series, file: str) -> Column:
    """Plain text of anything: numbers written out, lists joined, objects as `name: value`; entities of HTML undone."""
    texts, wrong = read.loose_text(column, file)
    if texts.str.contains(r"&(#\d+|#x[0-9a-fA-F]+|[a-zA-Z]+);").any():
        texts = texts.map_elements(html.unescape, return_dtype=pl.String)
    return texts, wrong
