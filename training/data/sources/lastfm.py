"""Last.fm: HetRec 2011 (`user_artists.dat`, `artists.dat`, no times) and the 1K users (six columns, no header)."""

from __future__ import annotations

from training.data.importing.content import share
from training.data.importing.table import Guess, Table


def recognise(table: Table) -> Guess | None:
    """Listens or artists; tags and friends are read by nothing here."""
    held = set(table.frame.columns)
    if {"userID", "artistID"} <= held:
        if "weight" not in held:
            return Guess(table, "other", by="Last.fm")
        doubt = "the file has no times; the order of its rows is taken as the order in time (--map time=none)"
        return Guess(table, "interactions", {"user": "userID", "item": "artistID"}, "Last.fm", True, doubts=(doubt,))
    if {"id", "name", "pictureURL"} <= held:
        return Guess(table, "items", {"item": "id", "title": "name"}, "Last.fm")
    if not table.header and table.frame.width == 6 and share(table.frame["column_2"].head(1000), r"^\d{4}-.*Z$") == 1:
        roles = {"user": "column_1", "time": "column_2", "brand": "column_4", "item": "column_5", "title": "column_6"}
        return Guess(table, "interactions", roles, "Last.fm")
    return None
