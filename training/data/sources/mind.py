"""MIND (Wu et al., ACL 2020): `news.tsv` and `behaviors.tsv`, both without a header.

Clicks are the impressions that end in -1, at the time of the impression. The clicks before (the history) have no times;
they are put before the user's first impression, a second apart.
"""

from __future__ import annotations

import polars as pl

from training.data.importing.content import share
from training.data.importing.table import Guess, Table
from training.data.importing.times import read_times

_NEWS = r"^N\d+$"


def recognise(table: Table) -> Guess | None:
    """News or behaviours."""
    if table.header or table.frame.width not in (5, 8):
        return None
    first = table.frame.head(1000)
    if table.frame.width == 8 and share(first["column_1"], _NEWS) == 1:
        frame = table.frame.with_columns(pl.concat_list("column_2", "column_3").alias("categories"))
        roles = {"item": "column_1", "title": "column_4", "categories": "categories", "description": "column_5"}
        return Guess(table.with_frame(frame), "items", roles, "MIND")
    if table.frame.width == 5 and share(first["column_5"], r"^(N\d+-[01] ?)+$") > 0.9:
        return _behaviours(table)
    return None


def _behaviours(table: Table) -> Guess:
    times = read_times(table.frame["column_3"], None).values
    frame = table.frame.select(
        pl.col("column_2").alias("user"), times.alias("time"), pl.col("column_4").alias("before"), "column_5"
    )
    clicks = (
        frame.select("user", "time", pl.col("column_5").str.extract_all(r"N\d+-1").alias("item"))
        .explode("item", empty_as_null=True)
        .filter(pl.col("item").is_not_null())
        .with_columns(pl.col("item").str.strip_suffix("-1"))
    )
    before = (
        frame.sort("time").group_by("user", maintain_order=True).agg(pl.col("time").first(), pl.col("before").first())
        .with_columns(pl.col("before").str.split(" ").list.drop_nulls().alias("item"))
        .filter(pl.col("item").list.len() > 0)
        .with_columns(pl.int_ranges(pl.col("item").list.len(), 0, -1).alias("ago"))
        .explode("item", "ago")
        .select("user", pl.col("time") - pl.col("ago"), "item")
    )  # fmt: skip
    made = pl.concat([before, clicks], how="vertical_relaxed")
    roles = {"user": "user", "item": "item", "time": "time"}
    note = f"{before.height:,} clicks of the histories have no times and were put before the first impression"
    fixed = Table(table.name, made, table.form, lines=pl.int_range(1, made.height + 1, eager=True))
    return Guess(fixed, "interactions", roles, "MIND", notes=(note,))
