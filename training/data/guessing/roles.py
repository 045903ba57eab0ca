"""The kind of one table and the roles of its columns: by the user's mapping, a known source, names or content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import polars as pl

from training.data.guessing.headerless import by_content, is_text
from training.data.guessing.nested import lists_taken_apart
from training.data.guessing.unnamed import id_as_item, is_title, rows_as_sessions
from training.data.importing.content import is_epoch, mostly_empty
from training.data.importing.names import LISTS, ONLY_BESIDE_TEXT, by_ending, by_name, folded
from training.data.importing.table import BY_NAMES, INTERACTION_ROLES, ITEM_ROLES, NONE, Guess, Kind, Table
from training.data.importing.times import are_dates
from training.data.sources import recognise

BY_ENDING = "ends of the names of columns"
ORDER_SAID = "(--map time=none)"
"""The end of a doubt about the order in time; the option answers it."""
_TIMES_LOOKED_AT = 1000


def guess(table: Table, mapped: Mapping[str, tuple[str, ...]]) -> Guess:
    """The kind of a table and its columns; the user's mapping overrides what was found."""
    found, given = recognise(table), columns_given(table, mapped)
    if found is None and (apart := _taken_apart(table, given)) is not None:
        table, given = apart.table, columns_given(apart.table, mapped)
        found = apart
    if found is None or any(column not in found.table.frame.columns for column in given.values() if column != NONE):
        found = _by_names(table, given)
    roles = {
        role: column for role, column in found.columns.items() if role not in given and column not in given.values()
    }
    if not table.header and "item" in given and "user" not in given:
        roles = {}  # whoever names the columns of items means no interactions
    roles |= {role: column for role, column in given.items() if column != NONE}
    kind = found.kind if found.kind != "other" or not given else kind_of(roles)
    kind = kind_of(roles) if given and not table.header else kind
    kind = "interactions" if {"user", "item"} <= set(roles) else kind
    decided = {"user", "item"} <= set(given) or (kind == "items" and "item" in given and set(given) & {*ITEM_ROLES})
    found = replace(found, kind=kind, columns=roles, doubts=() if decided else found.doubts)
    return _with_item_names(_with_order(found, given))


def _taken_apart(table: Table, given: Mapping[str, str]) -> Guess | None:
    """Interactions out of lists in the rows; None where a row names an item itself."""
    if table.header and id_as_item(table.frame, by_name(table.frame.columns)) is not None:
        return None
    found = lists_taken_apart(table)
    return rows_as_sessions(table) if found is None and "user" not in given else found


def _with_order(found: Guess, given: Mapping[str, str]) -> Guess:
    """The guess with a doubt where a table of interactions has no times and nobody said so."""
    if given.get("time") == NONE:
        left = tuple(doubt for doubt in found.doubts if not doubt.endswith(ORDER_SAID))
        return replace(found, doubts=left, ordered=True)
    if found.kind != "interactions":
        return found
    if "time" in found.columns:
        return replace(found, ordered=False)
    if found.ordered or found.doubts:
        return found
    doubt = f"no column of times was found; the order of rows is taken as the order in time {ORDER_SAID}"
    return replace(found, doubts=(doubt,))


def _with_item_names(found: Guess) -> Guess:
    """The guess with the items' ids as their titles too, where the ids are words."""
    item = found.columns.get("item", "")
    if found.kind != "interactions" or "title" in found.columns or folded(item) in LISTS:
        return found
    column = found.table.frame[item]
    if column.dtype.is_nested() or not is_text(column):
        return found
    return replace(found, columns={**found.columns, "title": item})


def columns_given(table: Table, mapped: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The columns of this table that the user mapped; a number names a column by its place.

    A role may be that of one file, as ``FILE:user``; then roles without a file do not count for that file. Nor do
    numbers for a file without so many columns.
    """
    held = {folded(name): name for name in reversed(table.frame.columns)}
    found = {}
    for role, wanted in _for_table(table, mapped).items():
        for name in wanted:
            if name == NONE:
                found[role] = NONE
            elif name in table.frame.columns:
                found[role] = name
            elif name.isdecimal() and 0 < int(name) <= table.frame.width and not table.header:
                found[role] = table.frame.columns[int(name) - 1]
            elif folded(name) and folded(name) in held:
                found[role] = held[folded(name)]
            if role in found:
                break
    return found


def _for_table(table: Table, mapped: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    own, general = {}, {}
    names = (table.name, PurePosixPath(table.name).name)
    for key, wanted in mapped.items():
        file, _, role = key.rpartition(":")
        if not file:
            general[role] = wanted
        elif any(fnmatchcase(name, file) for name in names):
            own[role] = wanted
    numbers = [int(wanted[0]) for wanted in general.values() if len(wanted) == 1 and wanted[0].isdecimal()]
    if not table.header and max(numbers, default=0) > table.frame.width:
        general = {}
    return own or general


def kind_of(roles: Mapping[str, str]) -> Kind:
    """Interactions have a user and an item; items have an item and something to say about it."""
    if {"user", "item"} <= set(roles):
        return "interactions"
    return "items" if "item" in roles and "user" not in roles and set(roles) & set(ITEM_ROLES) else "other"


def _by_names(table: Table, given: Mapping[str, str]) -> Guess:
    if not table.header:
        return by_content(table)
    frame = table.frame
    columns = [name for name in frame.columns if name not in given.values()]
    roles = by_name(columns, lambda name: mostly_empty(frame[name]))
    plain = next((name for name in columns if folded(name) == ONLY_BESIDE_TEXT), None)
    about = set(roles) & set(ITEM_ROLES) - {"price"}
    if plain is not None and about and not {"item", "user"} & {*roles, *given}:
        roles["item"] = plain
    ends = _missing_by_ending(frame, columns, {**roles, **given})
    roles |= ends
    own = id_as_item(frame, {**roles, **given})
    if own is not None:
        roles["item"] = own
    kind = kind_of({**roles, **given})
    if kind == "items" and "event" in roles and "categories" not in roles:
        roles["categories"] = roles.pop("event")  # a "type" of an item is no event
    kept = ITEM_ROLES if kind == "items" else (*INTERACTION_ROLES, *ITEM_ROLES)
    if kind == "interactions" and "title" not in roles and "description" in roles and "review" not in roles:
        roles["title"] = roles.pop("description")  # as receipts name what was bought
    notes = _notes_on_choice(table, roles) if kind != "other" else ()
    if kind == "interactions" and "title" in roles and not is_title(frame, {**roles, **given}):
        notes = (*notes, f"{roles.pop('title')} has several values for one item, or one for all, and is no title of it")
    roles = {role: name for role, name in roles.items() if role in (*kept, "item")}
    ordered = kind == "interactions" and "time" not in roles and folded(roles.get("item", "")) in LISTS
    doubts = (f"{_listed(ends)} by the end of the name alone",) if ends else ()
    if own is not None:
        doubts = (*doubts, f"{own} is taken as item: it repeats, and has about one {roles['title']} for each")
    return Guess(table, kind, roles, BY_ENDING if ends else BY_NAMES, ordered, doubts=doubts, notes=notes)


def _missing_by_ending(frame: pl.DataFrame, columns: list[str], found: Mapping[str, str]) -> dict[str, str]:
    """Columns for what interactions still need, by the ends of their names; none where the table may be of items."""
    if "item" in found and "user" not in found and set(found) & set(ITEM_ROLES):
        return {}
    wanted = [role for role in ("user", "item", "time") if role not in found]
    ends = by_ending([name for name in columns if name not in found.values()], wanted)
    if "time" in ends and not _is_time(frame[ends["time"]].head(_TIMES_LOOKED_AT)):
        del ends["time"]  # such as a clock without a day
    return ends if {"user", "item"} <= {*found, *ends} else {}


def _is_time(column: pl.Series) -> bool:
    return not column.dtype.is_nested() and (is_epoch(column) or are_dates(column))


def _listed(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{name} is taken as {role}" for role, name in columns.items())


def _notes_on_choice(table: Table, roles: Mapping[str, str]) -> tuple[str, ...]:
    """Which column was passed over because most of its cells are empty."""
    plain = by_name(table.frame.columns)
    return tuple(
        f"most cells of {plain[role]} are empty; {roles[role]} is taken as {role}"
        for role in ("user", "item", "time")
        if role in plain and role in roles and roles[role] != plain[role] and mostly_empty(table.frame[plain[role]])
    )
