"""Lines of numbers: a user and an item (SASRec) or a user and all items (LightGCN), in the order of time."""

from __future__ import annotations

import polars as pl

from training.data.importing.table import Guess, Table


def recognise(table: Table) -> Guess | None:
    """Interactions in order, one row an item."""
    if table.header or table.frame.width != 2 or table.frame.dtypes[1] != pl.List(pl.String):
        return None
    line = table.lines if table.lines is not None else pl.int_range(1, table.frame.height + 1, eager=True)
    rows = table.frame.with_columns(line.alias("line")).filter(pl.col("column_2").list.len() > 0).explode("column_2")
    made = Table(table.name, rows.drop("line"), table.form, False, lines=rows["line"])
    return Guess(made, "interactions", {"user": "column_1", "item": "column_2"}, "sequences of numbers", ordered=True)
