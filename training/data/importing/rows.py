"""One table of interactions or of items into the columns of a data set, with what was found odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from training.data.columns import Column
from training.data.format import Sieve
from training.data.importing import cells
from training.data.importing.names import folded
from training.data.importing.options import ImportOptions
from training.data.importing.table import ITEM_ROLES, Guess
from training.data.importing.times import Times, read_times
from training.data.notices import low_ratings
from training.data.report import DataError, Finding
from training.data.tables import LINE, RawTable

NAMES = {"user": "user_id", "item": "item_id", "time": "timestamp"}
UNNAMED = "Unnamed item"


@dataclass(frozen=True)
class Rows:
    """Typed rows in the order of the file; `doubts` and `notes` in words."""

    frame: pl.DataFrame
    findings: tuple[Finding, ...]
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def interactions_of(guess: Guess, options: ImportOptions) -> Rows:
    """Rows of `user_id`, `item_id`, `timestamp` and what else was mapped; raises `DataError` as `Sieve`."""
    raw = _one_item_a_row(guess.table.raw({NAMES.get(role, role): name for role, name in guess.columns.items()}), guess)
    if "timestamp" not in raw.frame.columns:
        raw = _with(raw, pl.int_range(pl.len(), dtype=pl.Int64).over("user_id").alias("timestamp"))
    sieve = Sieve(raw, options.tolerances, False)
    for name in ("user_id", "item_id"):
        sieve.typed(name, cells.read_ids, needed=True)
    found: list[Times] = []

    def times(column: pl.Series, file: str) -> Column:
        found.append(read_times(column, options.time_format))
        return found[0].values, found[0].wrong

    sieve.typed("timestamp", times, needed=True)
    for name in ("user_id", "item_id"):
        sieve.leave_out("missing_id", sieve.frame[name].is_null(), name, f"have no {name}")
    sieve.leave_out("missing_time", sieve.frame["timestamp"].is_null(), "timestamp", "have no timestamp")
    if "rating" in sieve.frame.columns:
        sieve.typed("rating", cells.read_ratings, needed=False, told=True)
    for name in ("event", "split", "review", "summary"):
        if name in sieve.frame.columns:
            sieve.typed(name, cells.read_text, needed=False, told=True)
    sieve.refuse_if_too_many()
    if sieve.frame.is_empty():
        raise DataError(f"{raw.file} holds no interactions")
    doubts = (found[0].doubt,) if found[0].doubt else ()
    notes = [f"{raw.file}: {found[0].note}"] if found[0].note else []
    if "rating" in sieve.frame.columns and options.min_rating is None:
        notes += [f"{text} (--min-rating)" for text in [low_ratings(raw.file, sieve.frame["rating"])] if text]
    return Rows(sieve.frame.drop(LINE), tuple(sieve.findings), doubts, tuple(notes))


def _with(raw: RawTable, *columns: pl.Expr) -> RawTable:
    return RawTable(raw.file, raw.frame.with_columns(*columns), raw.broken, raw.sha256)


def _one_item_a_row(raw: RawTable, guess: Guess) -> RawTable:
    """Lists of items taken apart, one row an item."""
    column = raw.frame["item_id"]
    lists = cells.as_lists(column) if column.dtype.is_nested() or column.dtype == pl.String else None
    if (
        lists is None
        and column.dtype == pl.String
        and folded(guess.columns["item"]) in ("itemidlist", "itemseq", "history")
    ):
        lists = column.str.split(" ")
    if lists is None:
        return raw
    frame = raw.frame.with_columns(lists.alias("item_id")).filter(pl.col("item_id").list.len() > 0)
    return RawTable(raw.file, frame.explode("item_id"), raw.broken, raw.sha256)


def kinds_doubt(frames: Sequence[pl.DataFrame], options: ImportOptions) -> str:
    """Printed where there are kinds of events, in one file or with one kind a file, and none was chosen."""
    events = [frame.select("event") for frame in frames if "event" in frame.columns]
    if not events or options.events is not None:
        return ""
    kinds = pl.concat(events)["event"].drop_nulls().value_counts(sort=True)
    if kinds.height < 2:
        return ""
    counted = ", ".join(f"{name} {count:,} times" for name, count in kinds.head(6).iter_rows())
    names = ",".join(kinds.head(6)["event"].to_list())
    return (
        f"the kinds of events ({counted}) would all count as wanted; choose with --events {names} (those that count, "
        "with weights as buy=3 if they differ) or --events all"
    )


def items_of(guess: Guess, options: ImportOptions) -> Rows:
    """Rows of `item_id`, `title` (null: none) and what else is there about an item, an id once."""
    sieve = Sieve(
        guess.table.raw({NAMES.get(role, role): name for role, name in guess.columns.items()}),
        options.tolerances,
        False,
    )
    sieve.typed("item_id", cells.read_ids, needed=True)
    sieve.leave_out("missing_id", sieve.frame["item_id"].is_null(), "item_id", "have no item_id")
    notes = _typed_item_columns(sieve, guess)
    again = ~sieve.frame["item_id"].is_first_distinct()
    sieve.tell("duplicate_item", again, "item_id", "repeat an item_id", "left out, the first stays")
    sieve.refuse_if_too_many()
    kept = ["item_id", *(role for role in ITEM_ROLES if role in sieve.frame.columns)]
    return Rows(sieve.frame.filter(~again).select(kept), tuple(sieve.findings), notes=tuple(notes))


def _typed_item_columns(sieve: Sieve, guess: Guess) -> list[str]:
    notes = []
    for name in ITEM_ROLES:
        if name not in sieve.frame.columns:
            continue
        if name != "categories":
            sieve.typed(name, cells.read_text, needed=False, told=True)
            continue
        separator = guess.separator or cells.categories_separator(sieve.frame[name])
        if separator not in ("", "|"):
            notes.append(f"{sieve.file}: names of categories are taken as separated by {separator!r}")

        def labels(column: pl.Series, file: str, separator: str = separator) -> Column:
            return cells.read_categories(column, file, separator)

        sieve.typed(name, labels, needed=False, told=True)
    return notes


def items_in(interactions: pl.DataFrame) -> pl.DataFrame:
    """One row for each item of the interactions, with what they say about it: the first that is not empty."""
    roles = [role for role in ITEM_ROLES if role in interactions.columns]
    if not roles:
        return interactions.select(pl.col("item_id").unique(maintain_order=True))
    about = interactions.select("item_id", *(_plain(interactions, role) for role in roles))
    return about.group_by("item_id", maintain_order=True).agg(pl.col(role).drop_nulls().first() for role in roles)


def _plain(frame: pl.DataFrame, role: str) -> pl.Series:
    if role == "categories":
        separator = cells.categories_separator(frame[role])
        return cells.read_categories(frame[role], "", separator)[0].alias(role)
    return cells.read_text(frame[role], "")[0].alias(role)
