"""Diginetica (CIKM Cup 2016): views and purchases by session, with a day and a clock that starts with the session."""

from __future__ import annotations

import polars as pl

from training.data.importing.table import Guess, Table
from training.data.importing.times import read_times

_HELD = {"sessionId", "itemId", "timeframe", "eventdate"}
_MILLISECONDS = 1000


def recognise(table: Table) -> Guess | None:
    """Interactions of sessions; most of them have no user. Their time is the day and the clock together."""
    if not table.frame.columns or not set(table.frame.columns) >= _HELD:
        return None
    day = read_times(table.frame["eventdate"], None).values.alias("day")
    clock = pl.col("timeframe").cast(pl.Float64, strict=False) / _MILLISECONDS
    kind = "purchase" if "ordernumber" in table.frame.columns else "view"
    frame = table.frame.with_columns(
        (pl.lit(day) + clock).alias("eventdate + timeframe"),
        pl.lit(kind).alias("kind of the file"),
    )
    roles = {"user": "sessionId", "item": "itemId", "time": "eventdate + timeframe", "event": "kind of the file"}
    return Guess(table.with_frame(frame), "interactions", roles, "Diginetica")
