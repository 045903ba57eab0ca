"""OTTO (RecSys 2022): JSON lines of sessions with a list of events."""

from __future__ import annotations

import polars as pl

from training.data.importing.table import Guess, Table


def recognise(table: Table) -> Guess | None:
    """Sessions, one row an event."""
    if not {"session", "events"} <= set(table.frame.columns):
        return None
    line = table.lines if table.lines is not None else pl.int_range(1, table.frame.height + 1, eager=True)
    rows = table.frame.select("session", "events", line.alias("line")).explode("events").unnest("events")
    roles = {"user": "session", "item": "aid", "time": "ts", "event": "type"}
    made = Table(table.name, rows.drop("line"), table.form, lines=rows["line"], broken=table.broken)
    return Guess(made, "interactions", {role: name for role, name in roles.items() if name in rows.columns}, "OTTO")
