"""Lists of objects in the rows of JSON or parquet: a user with what it took, a playlist with its tracks.

One row an object is made of them. A row that names an item itself stays as it is: there the lists say more about it.
"""

from __future__ import annotations

import polars as pl

from training.data.importing.names import by_name, folded
from training.data.importing.table import BY_NAMES, Guess, Table

USER, LINE = "user_id", "\x00line"


def lists_taken_apart(table: Table) -> Guess | None:
    """Interactions, one row an object of the lists; None where no list holds items or nothing names the user.

    Times of the outer row count where a user has several rows. Without any times the order of a list is taken as the
    order in time, which is a doubt.
    """
    frame = table.frame
    column = _list_of_items(frame.schema)
    if column is None:
        return None
    plain = [name for name, dtype in frame.schema.items() if not dtype.is_nested()]
    outer = by_name(plain)
    user = outer.get("user") or _own_id(frame, plain)
    if user is None or "item" in outer:
        return None
    kept = [pl.col(user).alias(USER)]
    if "time" in outer and frame[user].n_unique() < frame.height:
        kept.append(pl.col(outer["time"]))
    line = table.lines if table.lines is not None else pl.int_range(1, frame.height + 1, eager=True)
    rows = frame.select(*kept, pl.col(column), line.alias(LINE))
    while (column := _list_of_items(rows.schema)) is not None:
        rows = _one_row_an_object(rows, column)
    form = f"{table.form}, lists of objects as rows"
    made = Table(table.name, rows.drop(LINE), form, lines=rows[LINE], broken=table.broken)
    roles = by_name(made.frame.columns)
    if not {"user", "item"} <= set(roles):
        return None
    doubt = "the lists have no times; their order is taken as the order in time (--map time=none)"
    notes = () if "user" in outer else (f"{user} of the row with the list is taken as the user",)
    doubts = () if "time" in roles else (doubt,)
    return Guess(made, "interactions", roles, BY_NAMES, doubts=doubts, notes=notes)


def _own_id(frame: pl.DataFrame, columns: list[str]) -> str | None:
    """The column with another id in every row."""
    ids = [name for name in columns if folded(name).endswith("id")]
    return next((name for name in ids if not frame[name].null_count() and frame[name].is_unique().all()), None)


def _list_of_items(schema: pl.Schema) -> str | None:
    return next((name for name, dtype in schema.items() if _holds_items(dtype)), None)


def _holds_items(dtype: pl.DataType) -> bool:
    """Whether these are lists of objects with an item, or with such lists."""
    if not isinstance(dtype, pl.List) or not isinstance(dtype.inner, pl.Struct):
        return False
    fields = dtype.inner.fields
    plain = [field.name for field in fields if not field.dtype.is_nested()]
    return "item" in by_name(plain) or any(_holds_items(field.dtype) for field in fields)  # type: ignore[arg-type]


def _one_row_an_object(rows: pl.DataFrame, column: str) -> pl.DataFrame:
    """The outer columns with those of the objects; the outer one counts where both have a name."""
    names = [field.name for field in rows.schema[column].inner.fields]  # type: ignore[attr-defined]
    outer = [name for name in rows.columns if name != column]
    rows = rows.filter(pl.col(column).list.len() > 0).explode(column)
    return rows.select(*outer, *(pl.col(column).struct.field(name) for name in names if name not in outer))
