"""The atomic files of RecBole: names with a type (`user_id:token`), `token_seq` with spaces between names."""

from __future__ import annotations

from training.data.importing.names import by_name
from training.data.importing.table import Guess, Table

_TYPES = (":token", ":float", ":token_seq", ":float_seq")


def recognise(table: Table) -> Guess | None:
    """`.inter` is interactions and `.item` items; `.user` is read by nothing here."""
    columns = table.frame.columns
    if not columns or not all(name.endswith(_TYPES) for name in columns):
        return None
    roles = by_name(columns)
    if "item" in roles and "user" not in roles:
        separator = " " if roles.get("categories", "").endswith("_seq") else ""
        return Guess(table, "items", roles, "RecBole", separator=separator)
    return Guess(table, "interactions" if {"user", "item"} <= set(roles) else "other", roles, "RecBole")
