"""Logs of clicks without a header: Taobao (user, item, category, kind, time) and YooChoose (session, time, item)."""

from __future__ import annotations

from training.data.importing.content import is_epoch, share
from training.data.importing.table import Guess, Table

_BEHAVIOURS = r"^(pv|buy|cart|fav)$"


def recognise(table: Table) -> Guess | None:
    """Interactions; of Taobao with their kinds."""
    if table.header or table.frame.width not in (4, 5):
        return None
    first = table.frame.head(1000)
    if table.frame.width == 5 and share(first["column_4"], _BEHAVIOURS) == 1 and is_epoch(first["column_5"]):
        roles = {"user": "column_1", "item": "column_2", "event": "column_4", "time": "column_5"}
        return Guess(table, "interactions", {**roles, "categories": "column_3"}, "Taobao")
    iso = share(first["column_2"], r"^\d{4}-\d\d-\d\dT[\d:.]+Z$") == 1
    if iso and share(first["column_1"], r"^\d+$") == share(first["column_3"], r"^\d+$") == 1:
        roles = {"user": "column_1", "time": "column_2", "item": "column_3"}
        return Guess(table, "interactions", roles, "YooChoose")
    return None
