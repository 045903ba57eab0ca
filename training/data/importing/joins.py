"""Columns of one file put beside those of another, where what belongs together is in several files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from training.data.guessing import guess
from training.data.importing.containers import contents
from training.data.importing.names import folded
from training.data.importing.table import ROLES, ReadOptions, Table
from training.data.readers import read_tables
from training.data.report import DataError, shown


@dataclass(frozen=True)
class Join:
    """The columns of a file go to every table with the column `left`, by equal values in the file's column `right`."""

    file: Path
    left: str
    right: str


def parse_joins(given: Iterable[str]) -> tuple[Join, ...]:
    """``orders.csv:order_id``, or ``items.csv:item=id`` where the columns have two names. Raises `DataError`."""
    found = []
    for text in given:
        file, _, columns = text.rpartition(":")
        left, sign, right = columns.partition("=")
        if not file or not left.strip() or (sign and not right.strip()):
            raise DataError(f"--join {text!r} is not FILE:COLUMN or FILE:COLUMN=COLUMN_OF_FILE")
        found.append(Join(Path(file), left.strip(), (right if sign else left).strip()))
    return tuple(found)


def joined_tables(
    tables: Sequence[Table], joins: Iterable[Join], reading: ReadOptions
) -> tuple[list[Table], list[str]]:
    """Return the tables with what their joins bring, and a note on rows for which a file has none.

    A file that is joined is no table of its own any more. Rows keep their order and number.

    Raises:
        DataError: the file or a column is not there, or the file has several rows for one value.
    """
    left, notes = list(tables), []
    for join in joins:
        other = _read(join, reading)
        right = _column(other, join.right)
        if right is None:
            raise DataError(f"--join: {other.name} has no column {join.right!r}; {_held(other)}")
        rows = other.frame.filter(pl.col(right).is_not_null()).with_columns(pl.col(right).cast(pl.String))
        twice = rows[right].filter(rows[right].is_duplicated())
        if len(twice):
            raise DataError(
                f"--join: {other.name} has several rows for {right} {shown(twice[0])}; join by a column in which each "
                "value stands once"
            )
        left = [table for table in left if table.name != other.name]
        keys = {place: key for place, table in enumerate(left) if (key := _column(table, join.left)) is not None}
        if not keys:
            raise DataError(f"--join: no other file has a column {join.left!r}; {'; '.join(map(_held, left[:4]))}")
        for place, key in keys.items():
            left[place], missing = _beside(left[place], key, rows, right, join.file.stem)
            if missing:
                notes.append(f"{missing:,} of {left[place].frame.height:,} rows of {left[place].name} have no row in "
                             f"{other.name} with the same {key}")  # fmt: skip
    return left, notes


def _read(join: Join, reading: ReadOptions) -> Table:
    tables = [table for name, data in contents([join.file]) for table in read_tables(name, data, reading)]
    if len(tables) != 1:
        raise DataError(f"--join: {join.file} holds {len(tables)} tables; name a file with one")
    return tables[0]


def _column(table: Table, name: str) -> str | None:
    """The column of this name; else the one that is taken for the role of this name (user, item, …)."""
    if name in table.frame.columns:
        return name
    alike = {folded(each): each for each in table.frame.columns}.get(folded(name))
    if alike is None and name in ROLES:
        found = guess(table, {}).columns.get(name)
        return found if found in table.frame.columns else None
    return alike


def _held(table: Table) -> str:
    return f"{table.name} has {', '.join(map(shown, table.frame.columns[:10]))}"


def _beside(table: Table, key: str, rows: pl.DataFrame, right: str, stem: str) -> tuple[Table, int]:
    """The table with the columns of `rows`; a name that both have gets the file's in brackets."""
    names = {name: name if name not in table.frame.columns else f"{name} ({stem})" for name in rows.columns}
    mark = "\x00key"
    brought = rows.with_columns(pl.col(right).alias(mark)).rename(names)
    brought = brought.drop(names[right])  # equal to the key
    frame = table.frame.with_columns(pl.col(key).cast(pl.String).alias(mark))
    missing = int((~frame[mark].is_in(brought[mark].implode())).sum())
    frame = frame.join(brought, on=mark, how="left", maintain_order="left").drop(mark)
    return table.with_frame(frame), missing
