"""Users and items that no column names: rows that are sessions, and the `id` of an item beside a user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import polars as pl

from training.data.importing import cells
from training.data.importing.names import LISTS, ONLY_BESIDE_TEXT, by_ending, by_name, ends_with, folded
from training.data.importing.table import ITEM_ROLES, NONE, Guess, Table

BY_ROWS = "rows as sessions"
SESSION = "session"
_MOST_TITLES = 1.5
"""Different titles for an item in the mean, beyond which a column in interactions is no title of the item."""
_PAIRS_LOOKED_AT = 100_000


def rows_as_sessions(table: Table) -> Guess | None:
    """Interactions of a table whose rows hold lists of items and no user: every row is a session; None for others.

    The number of the row (from 1) becomes the user, which is a doubt. A column for one more item, as `next_item`, is
    the end of the list.
    """
    frame = table.frame
    named = by_name(frame.columns)
    column = _list_of_ids(frame)
    if not table.header or column is None or {"user", *ITEM_ROLES} & {*named} or named.get("item", column) != column:
        return None
    lists = cells.as_lists(frame[column])
    if lists is None:
        return None
    following = by_ending([name for name in frame.columns if name != column], ["item"]).get("item")
    parts = [lists.fill_null([]).alias(column)]
    if following is not None:
        parts.append(frame[following].cast(pl.String).alias(following))
    ids = pl.DataFrame(parts).select(pl.concat_list(pl.all()).list.drop_nulls().alias(column))
    rest = frame.drop([column, *([following] if following is not None else [])])
    numbers = pl.int_range(1, frame.height + 1, eager=True).cast(pl.String).alias(SESSION)
    made = replace(table, frame=pl.DataFrame([numbers, ids[column], *rest]), lines=table.line_numbers())
    end = (f"{following} is taken as the last item of its list",) if following is not None else ()
    doubt = "no column names a user: every row is taken as a session of its own, by its number"
    columns = {"user": SESSION, "item": column}
    return Guess(made, "interactions", columns, BY_ROWS, ordered=True, doubts=(doubt, *end))


def sessions_told_apart(guesses: Sequence[Guess]) -> list[Guess]:
    """The tables with the name of their file before the number of a session, where several have sessions by rows."""
    if sum(guess.by == BY_ROWS for guess in guesses) < 2:
        return [*guesses]
    return [_with_file(guess) if guess.by == BY_ROWS else guess for guess in guesses]


def _with_file(guess: Guess) -> Guess:
    named = pl.concat_str(pl.lit(f"{guess.table.name}:"), pl.col(SESSION)).alias(SESSION)
    return replace(guess, table=guess.table.with_frame(guess.table.frame.with_columns(named)))


def _list_of_ids(frame: pl.DataFrame) -> str | None:
    """The column of lists that its name, or the end of it, says to hold items."""
    for name, dtype in frame.schema.items():
        plain = dtype.inner if isinstance(dtype, pl.List) else dtype
        if not plain.is_nested() and (folded(name) in LISTS or ends_with(name, LISTS)):
            return name
    return None


def id_as_item(frame: pl.DataFrame, roles: Mapping[str, str]) -> str | None:
    """The column `id` beside a user, where it repeats and has about one title for each; None otherwise."""
    column = next((name for name in frame.columns if folded(name) == ONLY_BESIDE_TEXT), None)
    if column is None or "item" in roles or not {"user", "title"} <= {*roles} or column in roles.values():
        return None
    ids = frame[column]
    if ids.dtype.is_nested() or ids.drop_nulls().is_unique().all() or NONE in (roles["user"], roles["title"]):
        return None
    return column if is_title(frame, {**roles, "item": column}) else None


def is_title(frame: pl.DataFrame, roles: Mapping[str, str]) -> bool:
    """Whether a title that stands beside interactions is one of the item: about one for each, and not one for all."""
    title, item = roles["title"], roles["item"]
    if title == NONE or any(frame[name].dtype.is_nested() for name in (title, item)):
        return True
    pairs = frame.select(item, title).head(_PAIRS_LOOKED_AT).drop_nulls().unique()
    items, titles = pairs[item].n_unique(), pairs[title].n_unique()
    return pairs.height <= _MOST_TITLES * items and not (titles == 1 and items > 1)
