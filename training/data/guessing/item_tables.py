"""Tables of items found by their ids: a column that holds the items of the interactions is the id of an item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from training.data.guessing.headerless import BY_CONTENT, as_items, fullest, is_text
from training.data.importing import cells
from training.data.importing.table import BY_NAMES, Guess
from training.data.notices import respelled
from training.data.report import DataError

MOST = 0.5  # of the items of the interactions a column of their ids must hold
_UNIQUE = 0.9
_ROWS_ASKED, _ITEMS_ASKED = 200_000, 10_000


def by_their_ids(
    interactions: Sequence[Guess], items: Sequence[Guess], other: Sequence[Guess]
) -> tuple[list[Guess], list[Guess]]:
    """The tables of items and the rest, as the ids of the interactions speak for or against them.

    A table of items whose id is that of no interaction takes another column that is; one without a header whose columns
    hold no such ids is of something else. Where no table is of items, one whose names say nothing may be it.
    """
    asked = _items_of(interactions[0])
    if asked is None:
        return [*items], [*other]
    found = [_with_right_id(guess, asked) for guess in items]
    rest = [guess for guess in found if guess.kind == "other"]
    kept = [guess for guess in found if guess.kind == "items"]
    if kept or "title" in interactions[0].columns:
        return kept, [*other, *rest]
    tried = [_as_items(guess, asked) for guess in (*other, *rest)]
    return [guess for guess in tried if guess.kind == "items"], [guess for guess in tried if guess.kind == "other"]


def _items_of(guess: Guess) -> pl.Series | None:
    """Some ids of items; None where a cell holds a list of them."""
    column = guess.table.frame[guess.columns["item"]]
    if column.dtype.is_nested() or (column.dtype == pl.String and cells.as_lists(column.head(1000)) is not None):
        return None
    some = column.gather_every(max(1, len(column) // _ROWS_ASKED))
    ids = _ids(some.unique(maintain_order=True).head(_ITEMS_ASKED))
    return None if ids is None or ids.is_empty() else ids


def _ids(column: pl.Series) -> pl.Series | None:
    try:
        return cells.read_ids(column, "")[0].drop_nulls().unique()
    except (DataError, pl.exceptions.PolarsError):
        return None


def _held(guess: Guess, name: str, asked: pl.Series) -> float:
    """Share of the ids asked for that a column holds."""
    column = guess.table.frame[name]
    ids = None if column.dtype.is_nested() or column.dtype == pl.Boolean else _ids(column)
    return 0.0 if ids is None else float(asked.is_in(ids.implode()).mean())  # type: ignore[arg-type]


def _with_right_id(guess: Guess, asked: pl.Series) -> Guess:
    own = guess.columns["item"]
    if _held(guess, own, asked) >= MOST or _are_respelled(guess.table.frame[own], asked):
        return guess
    free = [name for name in guess.table.frame.columns if name not in guess.columns.values()]
    best = max(free, key=lambda name: _held(guess, name, asked), default=None)
    if best is None or _held(guess, best, asked) < MOST:
        return replace(guess, kind="other") if guess.by == BY_CONTENT else guess
    if guess.by == BY_CONTENT:
        return as_items(guess.table, best, _text_of(guess), f"{guess.table.name} has no header")
    note = f"{best} has the ids of the interactions, and is taken as the item in place of {own}"
    return replace(guess, columns={**guess.columns, "item": best}, notes=(*guess.notes, note))


def _text_of(guess: Guess) -> str:
    return next(name for role, name in guess.columns.items() if role != "item")


def _are_respelled(column: pl.Series, asked: pl.Series) -> bool:
    """Whether the ids are those asked for but for zeros in front or the like, which the import sees to."""
    ids = _ids(column)
    return ids is not None and len(respelled(asked.to_list(), ids.to_list())[0]) >= MOST * len(asked)


def _as_items(guess: Guess, asked: pl.Series) -> Guess:
    """The table as one of items, with a doubt, where it has their ids once each and some text."""
    frame = guess.table.frame
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String and is_text(frame[name])]
    free = [name for name in frame.columns if name not in texts]
    best = max(free, key=lambda name: _held(guess, name, asked), default=None)
    if not texts or best is None or "user" in guess.columns or guess.by not in (BY_CONTENT, BY_NAMES):
        return guess
    if _held(guess, best, asked) < MOST or frame[best].n_unique() < _UNIQUE * frame.height:
        return guess
    return as_items(guess.table, best, fullest(frame, texts), f"{guess.table.name} has the ids of the items")
