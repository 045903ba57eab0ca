"""The tables of a source side by side: those of interactions, those of the items in them, and the rest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

import polars as pl

from training.data.guessing.headerless import BY_CONTENT
from training.data.guessing.item_tables import by_their_ids
from training.data.guessing.roles import BY_ENDING
from training.data.guessing.unnamed import BY_ROWS, sessions_told_apart
from training.data.importing.names import folded
from training.data.importing.table import Guess
from training.data.report import DataError, shown

PARTS = {
    "train": {"train", "training"},
    "validation": {"valid", "validation", "dev", "val"},
    "test": {"test", "testing"},
}
_BETWEEN_USERS = {"trust", "friends", "friend", "friendships", "social", "edges", "follows", "followers", "contacts"}


def interactions_and_items(guesses: list[Guess]) -> tuple[list[Guess], list[Guess], list[Guess]]:
    """The tables of interactions (all with the same columns), those of items, and what is not used.

    Raises:
        DataError: no table is of interactions, or several that are not parts of one.
    """
    interactions = [guess for guess in guesses if guess.kind == "interactions"]
    items = [guess for guess in guesses if guess.kind == "items"]
    other = [guess for guess in guesses if guess.kind == "other"]
    if not interactions:
        raise DataError(_no_interactions(guesses))
    interactions, passed = _likelier(interactions)
    shapes = {tuple(sorted(guess.columns.items())) for guess in interactions}
    if len(shapes) > 1:
        raise DataError(_several(interactions, items))
    split = {guess.table.name: _part(guess.table.name) for guess in interactions}
    if {"train", "test"} <= set(split.values()) and "split" not in interactions[0].columns:
        interactions = [_with_part(guess, split[guess.table.name]) for guess in interactions]
    items, other = by_their_ids(interactions, items, other)
    interactions = sessions_told_apart(interactions)
    return interactions, items, [*passed, *other]


def _likelier(interactions: list[Guess]) -> tuple[list[Guess], list[Guess]]:
    """Of tables with different columns those that names or a source speak for, and those with times; and the others."""
    speaks: tuple[Callable[[Guess], bool], ...] = (
        lambda guess: not _words(guess.table.name) & _BETWEEN_USERS,
        lambda guess: guess.by not in (BY_CONTENT, BY_ENDING, BY_ROWS),
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


def _words(name: str) -> set[str]:
    return {folded(word) for word in re.split(r"[-._/]", name)}


def _part(name: str) -> str:
    return next((part for part, names in PARTS.items() if _words(name) & names), "")


def _with_part(guess: Guess, part: str) -> Guess:
    frame = guess.table.frame.with_columns(pl.lit(part or "train").alias("split"))
    return replace(guess, table=guess.table.with_frame(frame), columns={**guess.columns, "split": "split"})


def _several(interactions: list[Guess], items: list[Guess]) -> str:
    names = [guess.table.name for guess in interactions[:6]]
    one = " ".join([names[0], *(guess.table.name for guess in items[:3])])
    return (
        f"{', '.join(names)} are all interactions, with different columns; name only the files that belong together, "
        f"as data import {one}"
    )


def _join_hint(guesses: list[Guess]) -> str:
    """The option that puts the users of one file beside the items of another; "" where no column says how."""
    with_users = [guess for guess in guesses if "user" in guess.columns and "item" not in guess.columns]
    with_items = [guess for guess in guesses if "item" in guess.columns and "user" not in guess.columns]
    for users in with_users:
        for items in with_items:
            for name in users.table.frame.columns:
                column = users.table.frame[name]
                shared = name in items.table.frame.columns and not column.dtype.is_nested()
                if shared and column.null_count() == 0 and column.is_unique().all():
                    return (
                        f", or put the users of {users.table.name} beside the items: --join {users.table.name}:{name}"
                    )
    return ""


def _no_interactions(guesses: list[Guess]) -> str:
    held = "; ".join(
        f"{guess.table.name} has {', '.join(map(shown, guess.table.frame.columns[:8]))}"
        + (", …" if guess.table.frame.width > 8 else "")
        for guess in guesses[:4]
    )
    hint = "--map user=COLUMN,item=COLUMN,time=COLUMN"
    bare = [guess for guess in guesses if not guess.table.header]
    if bare:
        file = f"{PurePosixPath(bare[0].table.name).name}:" if len(bare) > 1 else ""
        hint += f" (a file without a header: the columns' numbers, as --map {file}user=1,item=2)"
    return f"no table tells who took what; say which columns do: {hint}{_join_hint(guesses)}. {held}"
