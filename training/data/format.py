"""The folder format: what items and interactions must hold, and what is done about rows that do not.

    items.{jsonl,csv,parquet}         item_id, title; optional categories, brand, description, price, attributes, …
    interactions.{csv,jsonl,parquet}  user_id, item_id, timestamp; optional rating, review, summary, split

(`.jsonl` and `.csv` also gzipped.) Ids are text or integers and are kept as they stand; titles have white
space evened out; categories are a list (lists in it are flattened), or text with `|` between names; a
timestamp is a number in any unit, the same for all, or an ISO 8601 date. The words that databases and pandas
write for nothing (`columns.NOTHING`) are nothing as user, title or time.

| kind of finding | rows | what is done within the tolerance |
| --- | --- | --- |
| broken_row | that are no csv, JSON or UTF-8, or have too few or many fields | left out |
| wrong_value | whose id, title or time is of a wrong kind | left out |
| missing_id, missing_time, empty_title | that lack what every row must have | left out |
| mixed_units | whose time is in milliseconds where most are in seconds, or the like | left out |
| duplicate_item | that repeat an item id | left out, the first stays |
| unknown_item | whose item is not in the items file at all | left out |
| item_left_out | whose item was left out above | left out |
| duplicate_interaction | with user, item and time of an earlier row | left out |
| wrong_cell | whose optional cell is of a wrong kind | the cell is emptied (of brand and description only told) |
| unsorted | older than the same user's row before | sorted by time (refused only by `strict`) |

The tolerance is a share of the file's rows and holds for each kind by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from training.data import columns as read
from training.data.notices import hint_for_unknown
from training.data.report import SHOWN, DataError, Finding, Place, Tolerances, shown
from training.data.tables import LINE, RawTable

INTERACTION_EXTRAS = ("rating", "review", "summary", "split")
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", *INTERACTION_EXTRAS)

_Reader = Callable[[pl.Series, str], read.Column]


class Sieve:
    """A table on its way to being usable: rows are taken out by kind, and every kind is remembered."""

    def __init__(self, raw: RawTable, tolerances: Tolerances, strict: bool) -> None:
        """Start with all readable rows of `raw`; the unreadable ones are the first finding."""
        self.file, self.total, self.frame, self._raw = raw.file, raw.total, raw.frame, raw.frame
        self.tolerances, self.strict = tolerances, strict
        self.findings: list[Finding] = []
        if raw.broken:
            self._remember("broken_row", len(raw.broken), "cannot be read", "left out", raw.broken[:SHOWN])

    def typed(self, name: str, reader: _Reader, needed: bool, told: bool = False) -> None:
        """Give a column its type; wrong rows are left out (if needed) or have the cell emptied.

        `told`: nothing depends on the column, so that wrong cells are told, and refused only by `strict`.
        """
        values, wrong = reader(self.frame[name], self.file)
        self.frame = self.frame.with_columns(values.alias(name))
        if needed:
            self.leave_out("wrong_value", wrong, name, f"hold something else than is allowed as {name}")
        elif wrong.any():
            what = f"hold something else than is allowed as {name}"
            limit = None if told and not self.strict else -1.0
            self._remember("wrong_cell", int(wrong.sum()), what, "cell emptied", self._places(wrong, name), limit)

    def leave_out(self, kind: str, hit: pl.Series, column: str, what: str) -> None:
        """Take out the rows marked in `hit` and remember them as `kind`."""
        if hit.any():
            self._remember(kind, int(hit.sum()), what, "left out", self._places(hit, column))
            self.frame = self.frame.filter(~hit)

    def tell(self, kind: str, hit: pl.Series, column: str, what: str, done: str) -> None:
        """Remember rows that are odd but usable; only `strict` refuses them."""
        if hit.any():
            limit = 0.0 if self.strict else None
            self._remember(kind, int(hit.sum()), what, done, self._places(hit, column), limit)

    def refuse_if_too_many(self) -> None:
        """Raise `DataError` with every kind that is over its limit."""
        refused = [str(finding) for finding in self.findings if finding.refused]
        if refused:
            raise DataError("\n".join(refused))

    def _remember(
        self,
        kind: str,
        count: int,
        what: str,
        done: str,
        places: tuple[Place, ...],
        limit: float | None = -1.0,
    ) -> None:
        if limit == -1.0:
            limit = 0.0 if self.strict else self.tolerances.of(kind)
        self.findings.append(Finding(kind, self.file, count, self.total, what, done, places, limit))

    def _places(self, hit: pl.Series, column: str) -> tuple[Place, ...]:
        lines = self.frame.filter(hit).head(SHOWN)[LINE].to_list()
        # What stood there is looked up in the table as read, for the typed column may hold a null instead.
        stood = dict(self._raw.filter(self._raw[LINE].is_in(lines)).select(LINE, column).iter_rows())
        return tuple(
            Place(self.file, line, column, "nothing" if stood[line] in (None, "") else shown(stood[line]))
            for line in lines
        )


def validate_items(raw: RawTable, tolerances: Tolerances, strict: bool) -> tuple[pl.DataFrame, Sieve]:
    """Usable items in file order (`item_id`, `title`, `categories`, further columns), and what was found.

    Raises `DataError` for a missing column, no usable row, or more odd rows of one kind than allowed.
    """
    _need(raw, ("item_id", "title"))
    sieve = Sieve(raw, tolerances, strict)
    sieve.typed("item_id", read.ids, needed=True)
    sieve.typed("title", read.text, needed=True)
    for name, reader in _ITEM_COLUMNS.items():
        if name in sieve.frame.columns:
            sieve.typed(name, reader, needed=False, told=name in _UNREAD)
    sieve.leave_out("missing_id", sieve.frame["item_id"].is_null(), "item_id", "have no item_id")
    again = ~sieve.frame["item_id"].is_first_distinct()
    sieve.leave_out("duplicate_item", again, "item_id", "repeat an item_id")
    sieve.leave_out("empty_title", sieve.frame["title"].is_null(), "title", "have no title")
    sieve.refuse_if_too_many()
    if sieve.frame.is_empty():
        raise DataError(f"{raw.file} holds no items")
    frame = sieve.frame.drop(LINE)
    if "categories" not in frame.columns:
        frame = frame.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias("categories"))
    known = ["item_id", "title", "categories"]
    others = [read.anything(frame[name]) for name in frame.columns if name not in known]
    return frame.select(known).with_columns(series for series in others if series is not None), sieve


def validate_interactions(
    raw: RawTable,
    items: pl.DataFrame,
    all_item_ids: pl.Series,
    items_file: str,
    tolerances: Tolerances,
    strict: bool,
) -> tuple[pl.DataFrame, Sieve]:
    """Usable interactions in file order (`user_id`, `item_id`, `timestamp`, …), and what was found.

    `all_item_ids` are the ids that stand in the items file, left out or not. Raises `DataError` as
    `validate_items`.
    """
    _need(raw, ("user_id", "item_id", "timestamp"))
    sieve = Sieve(raw, tolerances, strict)
    for name, reader in (("user_id", read.ids), ("item_id", read.ids), ("timestamp", read.times)):
        sieve.typed(name, reader, needed=True)
    extras = [name for name in INTERACTION_EXTRAS if name in raw.frame.columns]
    for name in extras:
        sieve.typed(name, read.numbers if name == "rating" else read.text, needed=False)
    sieve.leave_out("missing_id", sieve.frame["user_id"].is_in(read.NOTHING), "user_id", "have no user_id but a word")
    for name in ("user_id", "item_id"):
        sieve.leave_out("missing_id", sieve.frame[name].is_null(), name, f"have no {name}")
    sieve.leave_out("missing_time", sieve.frame["timestamp"].is_null(), "timestamp", "have no timestamp")
    other, units = read.of_another_unit(sieve.frame["timestamp"])
    sieve.leave_out("mixed_units", other, "timestamp", f"have a time in another unit than most ({units})")
    unknown = ~sieve.frame["item_id"].is_in(all_item_ids.implode())
    hint = hint_for_unknown(sieve.frame["item_id"].filter(unknown), all_item_ids.drop_nulls()) if unknown.any() else ""
    sieve.leave_out("unknown_item", unknown, "item_id", f"name an item that {items_file} does not have{hint}")
    dropped = ~sieve.frame["item_id"].is_in(items["item_id"].implode())
    sieve.leave_out("item_left_out", dropped, "item_id", f"name an item that was left out of {items_file}")
    again = ~sieve.frame.select(pl.struct("user_id", "item_id", "timestamp").is_first_distinct()).to_series()
    sieve.leave_out("duplicate_interaction", again, "item_id", "repeat user, item and time of an earlier row")
    before = sieve.frame.select(pl.col("timestamp") < pl.col("timestamp").shift(1).over("user_id")).to_series()
    what = "are older than the row before of the same user"
    sieve.tell("unsorted", before.fill_null(False), "timestamp", what, "sorted by time")
    sieve.refuse_if_too_many()
    if sieve.frame.is_empty():
        raise DataError(f"{raw.file} holds no interactions")
    return sieve.frame.select("user_id", "item_id", "timestamp", *extras), sieve


_ITEM_COLUMNS: dict[str, _Reader] = {
    "categories": read.labels,
    "brand": read.loose_text,
    "description": read.loose_text,
    "price": read.loose_text,
    "attributes": read.loose_text,
    "title_missing": read.flags,
}
_UNREAD = ("brand", "description", "price", "attributes", "title_missing")  # unless items.text_template names them


def _need(raw: RawTable, names: tuple[str, ...]) -> None:
    held = [name for name in raw.frame.columns if name != LINE]
    missing = [name for name in names if name not in held]
    if missing and not raw.frame.is_empty():
        columns = ", ".join(shown(name) for name in held[:12]) + (", …" if len(held) > 12 else "")
        raise DataError(
            f"{raw.file} has no column {', '.join(missing)}; it has: {columns}; it needs: {', '.join(names)}"
            + _looks_like(held, names)
        )
    if missing or raw.frame.is_empty():
        examples = "".join(f"\n  {place}" for place in raw.broken[:SHOWN])
        raise DataError(f"{raw.file} holds no readable rows{examples}")


def _looks_like(held: list[str], names: tuple[str, ...]) -> str:
    """Advice about a header of another format, where it is recognised."""
    for sign, called in (("\t", "tabs"), ("::", "'::'"), (";", "semicolons"), ("|", "bars")):
        if any(sign in name for name in held):
            return f". It looks separated by {called}; commas are read"
    folded = {name.strip().casefold(): name for name in held}
    if all(name in folded for name in names):
        return ". Names are read as they stand, small and without spaces"
    return ""
