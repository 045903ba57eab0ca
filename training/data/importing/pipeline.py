"""From files to a data set: read, guess, type, join, filter, write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from modeling.artifact.atomic import replaced_folder
from training.data import guessing
from training.data.importing.containers import contents
from training.data.importing.filters import filtered, ordered
from training.data.importing.joins import joined_tables
from training.data.importing.options import ImportOptions
from training.data.importing.rows import UNNAMED, Rows, interactions_of, items_in, items_of, kinds_doubt
from training.data.importing.table import ITEM_ROLES, Guess
from training.data.notices import respelled
from training.data.readers import read_tables
from training.data.report import DataError, DataReport, shown

MOST_UNKNOWN = 0.5
SOURCE = "import"
Confirm = Callable[[str, Sequence[str]], bool]


@dataclass(frozen=True)
class Imported:
    """A data set as written: its size, what was taken for what, and what was lost."""

    folder: Path
    users: int
    items: int
    interactions: int
    read_as: str
    report: DataReport

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        facts = {
            "folder": str(self.folder),
            "users": self.users,
            "items": self.items,
            "interactions": self.interactions,
        }
        return {**facts, "read_as": self.read_as.splitlines(), "report": self.report.to_dict()}


def import_data(sources: Sequence[Path], out: Path, options: ImportOptions, confirm: Confirm) -> Imported:
    """Write the data set that the sources hold to the folder `out`.

    Args:
        sources: files, folders and archives.
        out: new folder, or an earlier data set of anyo.
        options: see there.
        confirm: called with what was taken for what and what is doubtful; False ends the import.

    Raises:
        DataError: what the sources hold cannot be used, or is doubtful and was not confirmed.
        TargetError: `out` may not be written.
    """
    tables = [table for name, data in contents(sources) for table in read_tables(name, data, options.reading)]
    tables, unmatched = joined_tables(tables, options.joins, options.reading)
    guesses = [guessing.guess(table, options.columns) for table in tables]
    _every_column_is_there(guesses, options)
    interactions, items, other = guessing.interactions_and_items(guesses)
    typed = [interactions_of(each, options) for each in interactions]
    described = [items_of(each, options) for each in items]
    read_as = "\n".join(map(guessing.describe, [*interactions, *items, *other]))
    doubts = dict.fromkeys(text for each in interactions for text in each.doubts)
    doubts |= dict.fromkeys(text for each in items for text in each.doubts)
    doubts |= dict.fromkeys(text for rows in typed for text in rows.doubts)
    doubts |= dict.fromkeys(filter(None, [kinds_doubt([rows.frame for rows in typed], options)]))
    if not confirm(read_as, [*doubts]):
        mapped = guessing.as_options(interactions, items, other)
        raise DataError(f"{'; '.join(doubts) or 'not confirmed'}. To take it so: --yes; to say what is what: {mapped}")
    frame, catalog, notes = _joined(typed, described, options)
    frame, more = filtered(frame, options)
    frame = ordered(frame, options)
    if options.core != (1, 1):
        catalog = catalog.filter(pl.col("item_id").is_in(frame["item_id"].unique().implode()))
    notes = [*unmatched, *notes, *more, *_ties_note(frame, options)]
    findings = tuple(finding for rows in (*typed, *described) for finding in rows.findings)
    said = tuple(dict.fromkeys(text for rows in (*typed, *described) for text in rows.notes))
    report = DataReport(findings, (*said, *notes))
    _write(out, catalog, frame, sources, report)
    return Imported(out, frame["user_id"].n_unique(), catalog.height, frame.height, read_as, report)


def _every_column_is_there(guesses: list[Guess], options: ImportOptions) -> None:
    for role, wanted in options.columns.items():
        given = {role: wanted}
        if not any(guessing.columns_given(guess.table, given) for guess in guesses):
            held = "; ".join(
                f"{g.table.name}: {', '.join(map(shown, g.table.frame.columns[:10]))}" for g in guesses[:4]
            )
            of = "that file has no such column, or is not there" if ":" in role else "no file has such a column"
            raise DataError(f"--map {role}={wanted[0]}: {of}. {held}")


def _joined(
    typed: list[Rows], described: list[Rows], options: ImportOptions
) -> tuple[pl.DataFrame, pl.DataFrame, list[str]]:
    """All interactions, the catalog, and notes on what did not match."""
    frame = typed[0].frame if len(typed) == 1 else pl.concat([rows.frame for rows in typed], how="diagonal_relaxed")
    own = items_in(frame)
    frame = frame.drop([role for role in ITEM_ROLES if role in frame.columns])
    notes: list[str] = []
    if not described:
        return frame, _catalog(own, notes), notes
    items = pl.concat([rows.frame for rows in described], how="diagonal_relaxed")
    items = items.unique("item_id", keep="first", maintain_order=True)
    unknown = own.filter(~pl.col("item_id").is_in(items["item_id"].implode()))
    changes, words = respelled(unknown["item_id"].to_list(), items["item_id"].to_list()) if unknown.height else ({}, "")
    if changes:
        notes.append(
            f"{len(changes):,} item ids of the interactions are as in the items only {words}; those were taken"
        )
        frame = frame.with_columns(pl.col("item_id").replace(changes))
        unknown = unknown.filter(~pl.col("item_id").is_in([*changes]))
    if unknown.height:
        frame, items = _with_unknown(frame, items, unknown, options, notes)
    return frame, _catalog(items, notes), notes


def _with_unknown(
    frame: pl.DataFrame, items: pl.DataFrame, unknown: pl.DataFrame, options: ImportOptions, notes: list[str]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    hit = frame["item_id"].is_in(unknown["item_id"].implode())
    count, part = int(hit.sum()), float(hit.mean())  # type: ignore[arg-type]
    words = f"{count:,} of {frame.height:,} interactions ({100 * part:.0f} %) name an item that the items do not have"
    if options.unknown_items is None and part > MOST_UNKNOWN:
        example = shown(unknown["item_id"][0])
        raise DataError(
            f"{words}, as {example}, where items have {shown(items['item_id'][0])}; give the right columns with --map, "
            "or --unknown-items keep (without a title) or drop"
        )
    if options.unknown_items == "drop":
        notes.append(f"{words}; left out")
        return frame.filter(~hit), items
    notes.append(f"{words}; kept ({unknown.height:,} items without a title unless the interactions have one)")
    return frame, pl.concat([items, unknown], how="diagonal_relaxed")


def _catalog(items: pl.DataFrame, notes: list[str]) -> pl.DataFrame:
    """Items as they are written; one without a title is marked and gets the same words as every other such item.

    Its id must not stand in for the title: a model that reads would learn from it what it must not know.
    """
    title = pl.col("title") if "title" in items.columns else pl.lit(None, pl.String)
    items = items.with_columns(title.fill_null(UNNAMED).alias("title"), title.is_null().alias("title_missing"))
    missing = int(items["title_missing"].sum())
    if missing:
        share = f"{missing:,} of {items.height:,} items"
        notes.append(f"{share} have no title and are called {UNNAMED!r}; train on ids (sasrec) if that is most of them")
    if "categories" in items.columns:
        items = items.with_columns(pl.col("categories").fill_null([]))
    kept = [role for role in ITEM_ROLES if role in items.columns and role != "title"]
    return items.select("item_id", "title", *kept, *(["title_missing"] if missing else []))


def _ties_note(frame: pl.DataFrame, options: ImportOptions) -> list[str]:
    keys = frame.select("user_id", "timestamp")
    tied = int(
        (keys["user_id"].eq_missing(keys["user_id"].shift(1)) & (keys["timestamp"] == keys["timestamp"].shift(1))).sum()
    )
    if not tied:
        return []
    how = f"shuffled, seed {options.seed}" if options.ties == "shuffle" else "left in file order (--ties file)"
    return [f"{tied:,} interactions have the same user and time as another; the order of these was {how}"]


def _write(
    out: Path, items: pl.DataFrame, interactions: pl.DataFrame, sources: Sequence[Path], report: DataReport
) -> None:
    columns = [
        "user_id",
        "item_id",
        "timestamp",
        *(n for n in ("rating", "review", "summary", "split") if n in interactions),
    ]
    about = {"name": SOURCE, "sources": [path.name for path in sources], "report": report.to_dict()}
    with replaced_folder(out, kind="data set") as folder:
        items.write_ndjson(folder / "items.jsonl")
        interactions.select(columns).write_parquet(folder / "interactions.parquet")
        (folder / "source.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
