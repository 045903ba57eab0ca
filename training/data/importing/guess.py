"""Which table is what, and which column has which role: as mapped by the user, by a known source, or by names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import polars as pl

from training.data.importing.content import is_epoch, share
from training.data.importing.names import ONLY_BESIDE_TEXT, by_name, folded
from training.data.importing.table import INTERACTION_ROLES, ITEM_ROLES, NONE, Guess, Kind, Table
from training.data.report import DataError, shown
from training.data.sources import recognise

BY_CONTENT = "what is in the columns"
_LISTS = {"itemids", "items", "productids", "articleids", "movieids", "itemidlist", "itemseq", "history", "sequence"}


def guess(table: Table, mapped: Mapping[str, tuple[str, ...]]) -> Guess:
    """The kind of a table and its columns; the user's mapping overrides what was found."""
    given = columns_given(table, mapped)
    found = recognise(table)
    if found is None or any(column not in found.table.frame.columns for column in given.values() if column != NONE):
        found = _by_names(table, given)
    roles = {
        role: column for role, column in found.columns.items() if role not in given and column not in given.values()
    }
    roles |= {role: column for role, column in given.items() if column != NONE}
    kind = found.kind if found.kind != "other" or not given else kind_of(roles)
    kind = "interactions" if {"user", "item"} <= set(roles) else kind
    doubts = () if {"user", "item"} <= set(given) else found.doubts
    if given.get("time") == NONE:
        doubts, found = (), replace(found, ordered=True)
    elif kind == "interactions" and "time" not in roles and not found.ordered and not doubts:
        doubts = ("no column of times was found; the order of rows is taken as the order in time (--map time=none)",)
    elif kind == "interactions" and found.ordered and "time" in roles:
        found = replace(found, ordered=False)
    return replace(found, kind=kind, columns=roles, doubts=doubts)


def columns_given(table: Table, mapped: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The columns of this table that the user mapped; a number names a column by its place."""
    held = {folded(name): name for name in reversed(table.frame.columns)}
    found = {}
    for role, wanted in mapped.items():
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


def kind_of(roles: Mapping[str, str]) -> Kind:
    """Interactions have a user and an item; items have an item and something to say about it."""
    if {"user", "item"} <= set(roles):
        return "interactions"
    return "items" if "item" in roles and "user" not in roles and set(roles) & set(ITEM_ROLES) else "other"


def _by_names(table: Table, given: Mapping[str, str]) -> Guess:
    if not table.header:
        return _by_content(table)
    columns = [name for name in table.frame.columns if name not in given.values()]
    roles = by_name(columns)
    plain = next((name for name in columns if folded(name) == ONLY_BESIDE_TEXT), None)
    about = set(roles) & set(ITEM_ROLES) - {"price"}
    if plain is not None and about and not {"item", "user"} & {*roles, *given}:
        roles["item"] = plain
    kind = kind_of({**roles, **given})
    if kind == "items" and "event" in roles and "categories" not in roles:
        roles["categories"] = roles.pop("event")  # a "type" of an item is no event
    kept = ITEM_ROLES if kind == "items" else (*INTERACTION_ROLES, *ITEM_ROLES)
    if kind == "interactions" and "title" not in roles and "description" in roles and "review" not in roles:
        roles["title"] = roles.pop("description")  # as receipts name what was bought
    roles = {role: name for role, name in roles.items() if role in (*kept, "item")}
    ordered = kind == "interactions" and "time" not in roles and folded(roles.get("item", "")) in _LISTS
    return Guess(table, kind, roles, ordered=ordered)


def _by_content(table: Table) -> Guess:
    """A file without a header: the first two columns that are no times, ratings or kinds are taken as user and item."""
    roles: dict[str, str] = {}
    left: list[str] = []
    for name in table.frame.columns:
        column = table.frame[name].head(1000)
        if "time" not in roles and (is_epoch(column) or share(column, r"^\d{4}-\d\d-\d\d") == 1):
            roles["time"] = name
        elif "rating" not in roles and len(left) > 1 and share(column, r"^(10|\d([.,]\d+)?)$") == 1:
            roles["rating"] = name
        else:
            left.append(name)
    if len(left) < 2 or ("time" not in roles and table.frame.width > 3):
        return Guess(table, "other")
    if "time" not in roles and _is_text(table.frame[left[1]]):
        return Guess(table, "items", {"item": left[0], "title": left[1]}, BY_CONTENT, doubts=_doubts(table))
    roles |= {"user": left[0], "item": left[1]}
    return Guess(table, "interactions", roles, BY_CONTENT, doubts=_doubts(table))


def _doubts(table: Table) -> tuple[str, ...]:
    return ("the file has no header, so its columns are taken by what is in them",)


def _is_text(column: pl.Series) -> bool:
    return share(column.head(1000), r"^\S+$") < 0.9 and share(column.head(1000), r"[^\W\d_]{2}") > 0.5


def as_options(guess: Guess) -> str:
    """The roles of a table as ``--map`` takes them."""
    columns = guess.columns if guess.table.header else {
        role: name.removeprefix("column_") for role, name in guess.columns.items()
    }  # fmt: skip
    roles = [*(f"{role}={columns[role]}" for role in (*INTERACTION_ROLES, *ITEM_ROLES) if role in columns)]
    if guess.kind == "interactions" and "time" not in columns:
        roles.append("time=none")
    return "--map " + _quoted(",".join(roles))


def _quoted(text: str) -> str:
    return text if text and not set(text) & set(" '\"()*;&|<>$`\\") else "'" + text.replace("'", "'\\''") + "'"


def describe(guess: Guess) -> str:
    """One paragraph on a table: how it was read, what it is taken for, and examples of what is in its columns."""
    table = guess.table
    lines = [f"{table.name} ({table.form}): {table.frame.height:,} rows, {guess.kind} by {guess.by}"]
    first = table.frame.head(1).to_dicts()[0] if table.frame.height else {}
    for role, column in guess.columns.items() if guess.kind != "other" else ():
        lines.append(f"  {role:<12} {column}   e.g. {shown(first.get(column))}")
    unused = [name for name in table.frame.columns if name not in guess.columns.values()]
    if unused and guess.kind != "other":
        lines.append(f"  not used     {', '.join(unused[:12])}" + (", …" if len(unused) > 12 else ""))
    return "\n".join([*lines, *(f"  note: {note}" for note in guess.notes)])


def interactions_and_items(guesses: list[Guess]) -> tuple[list[Guess], list[Guess], list[Guess]]:
    """The tables of interactions (all with the same columns), those of items, and what is not used.

    Raises:
        DataError: no table is of interactions, or several that are not parts of one.
    """
    interactions = [guess for guess in guesses if guess.kind == "interactions"]
    items = [guess for guess in guesses if guess.kind == "items"]
    if not interactions:
        raise DataError(_no_interactions(guesses))
    interactions, passed = _likelier(interactions)
    shapes = {tuple(sorted(guess.columns.items())) for guess in interactions}
    if len(shapes) > 1:
        names = ", ".join(guess.table.name for guess in interactions[:6])
        raise DataError(
            f"{names} are all interactions, with different columns; name only the files that belong together"
        )
    split = {guess.table.name: _part(guess.table.name) for guess in interactions}
    if {"train", "test"} <= set(split.values()) and "split" not in interactions[0].columns:
        interactions = [_with_part(guess, split[guess.table.name]) for guess in interactions]
    return interactions, items, [*passed, *(guess for guess in guesses if guess.kind == "other")]


def _likelier(interactions: list[Guess]) -> tuple[list[Guess], list[Guess]]:
    """Of tables with different columns those that names or a source speak for, and those with times; and the others."""
    speaks: tuple[Callable[[Guess], bool], ...] = (
        lambda guess: guess.by != BY_CONTENT,
        lambda guess: "time" in guess.columns or guess.ordered,
    )
    left = interactions
    for better in speaks:
        chosen = [guess for guess in left if better(guess)]
        if len({tuple(sorted(guess.columns.items())) for guess in left}) > 1 and chosen:
            left = chosen
    names = {guess.table.name for guess in left}
    passed = [replace(each, kind="other", by="another table") for each in interactions if each.table.name not in names]
    return left, passed


def _part(name: str) -> str:
    words = {folded(word) for word in re.split(r"[-._/]", name)}
    for part, names in PARTS.items():
        if words & names:
            return part
    return ""


PARTS = {
    "train": {"train", "training"},
    "validation": {"valid", "validation", "dev", "val"},
    "test": {"test", "testing"},
}


def _with_part(guess: Guess, part: str) -> Guess:
    frame = guess.table.frame.with_columns(pl.lit(part or "train").alias("split"))
    return replace(guess, table=guess.table.with_frame(frame), columns={**guess.columns, "split": "split"})


def _no_interactions(guesses: list[Guess]) -> str:
    held = "; ".join(
        f"{guess.table.name} has {', '.join(map(shown, guess.table.frame.columns[:8]))}"
        + (", …" if guess.table.frame.width > 8 else "")
        for guess in guesses[:4]
    )
    hint = "--map user=COLUMN,item=COLUMN,time=COLUMN"
    if any(not guess.table.header for guess in guesses):
        hint += " (a file without a header: the columns' numbers, as user=1,item=2)"
    return f"no table tells who took what; say which columns do: {hint}. {held}"
