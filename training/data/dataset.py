"""A data set in memory: items by row, and one sequence of rows per user, oldest first.

Rows are a random permutation of the items file, seeded by the content's hash: the same content gives the
same rows everywhere, and neither an item's id nor its place in the file can be read off its row. Row order
may therefore break ties of score.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from index.filters.language import AttributeValue
from index.filters.stored import allowed_value
from training.data.columns import ids
from training.data.format import (
    INTERACTION_COLUMNS,
    validate_interactions,
    validate_items,
)
from training.data.notices import on_interactions, on_items
from training.data.report import DEFAULT_TOLERANCE, DataError, DataReport, Tolerances
from training.data.tables import find_file, read_table

Ints = npt.NDArray[np.int64]
Ties = Literal["file", "shuffle"]
PRICE = re.compile(r"\s*[$€£¥]?\s*(\d{1,12}(?:\.\d+)?)\s*")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Items and sequences. U users, N items, R interactions.

    `items`: N rows (`item_id`, `title`, `categories`, and whatever else the file has: `brand`,
    `description`, …). `rows` int32 [R] and `timestamps` [R] (int64, or float64 where times have fractions)
    lie user after user, oldest first; those of user u are `offsets_U1[u]:offsets_U1[u + 1]`. `columns` has
    R rows with the optional `rating`, `review` and `summary`. `sha256` is the hash of both files' content.
    `ties` says in which order interactions of one user with the same time stand.
    """

    name: str
    items: pl.DataFrame
    user_ids: tuple[str, ...]
    offsets_U1: Ints
    rows: npt.NDArray[np.int32]
    timestamps: npt.NDArray[Any]
    columns: pl.DataFrame
    sha256: str
    report: DataReport
    ties: str = "file"

    @property
    def n_items(self) -> int:
        """N."""
        return self.items.height

    @property
    def n_users(self) -> int:
        """U."""
        return len(self.user_ids)

    @property
    def n_interactions(self) -> int:
        """R."""
        return len(self.rows)

    @cached_property
    def item_ids(self) -> tuple[str, ...]:
        """Item ids by row."""
        return tuple(self.items["item_id"].to_list())

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """Titles by row."""
        return tuple(self.items["title"].to_list())

    @cached_property
    def categories(self) -> tuple[tuple[str, ...], ...]:
        """Categories by row."""
        return tuple(tuple(names) for names in self.items["categories"].to_list())

    @cached_property
    def attributes(self) -> tuple[dict[str, AttributeValue], ...]:
        """Attributes that requests can filter by, besides categories, by row.

        `brand` is text, `price` a number where it is one, with or without a currency sign before it.
        """
        found: list[dict[str, AttributeValue]] = [{} for _ in range(self.n_items)]
        for name in ("brand", "price"):
            for named, text in zip(
                found, self.items[name].to_list() if name in self.items.columns else (), strict=False
            ):
                price = PRICE.fullmatch(text) if text and name == "price" else None
                value = float(price[1]) if price else text
                if text and (price or name == "brand") and allowed_value(name, value):
                    named[name] = value
        return tuple(found)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each item id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def user_of(self) -> dict[str, int]:
        """The position of each user id."""
        return {user_id: user for user, user_id in enumerate(self.user_ids)}

    @cached_property
    def lengths_U(self) -> Ints:
        """Interactions per user."""
        return np.diff(self.offsets_U1)

    @cached_property
    def order_only(self) -> bool:
        """Whether timestamps are positions 0, 1, 2, … of each user and so say nothing about time."""
        positions = np.arange(self.n_interactions) - np.repeat(self.offsets_U1[:-1], self.lengths_U)
        return bool(self.n_interactions > self.n_users and np.array_equal(self.timestamps, positions))

    def sequence(self, user: int) -> npt.NDArray[np.int32]:
        """The item rows of one user, oldest first (a view)."""
        return self.rows[self.offsets_U1[user] : self.offsets_U1[user + 1]]

    def statistics(self) -> dict[str, Any]:
        """Size and shape, as plain data."""
        tied = tied_with_the_one_before(self)
        return {
            "users": self.n_users,
            "items": self.n_items,
            "interactions": self.n_interactions,
            "mean_length": round(float(self.lengths_U.mean()), 2),
            "median_length": float(np.median(self.lengths_U)),
            "density": round(self.n_interactions / (self.n_users * self.n_items), 6),
            "tied_neighbours": int(tied.sum()),
            "users_with_tied_target": int(tied[self.offsets_U1[1:] - 1].sum()),
            "order_only": self.order_only,
        }


def read_dataset(
    folder: Path | str,
    *,
    strict: bool = False,
    tolerance: float | Tolerances = DEFAULT_TOLERANCE,
    ties: Ties = "file",
    seed: int = 0,
) -> Dataset:
    """Read a data folder (see `training.data.format` for files, columns and what is tolerated).

    `tolerance` is the share of a file's rows that may be odd in any one way, or one for each kind; `strict`
    allows none and refuses unsorted times too. `ties="file"` keeps interactions of one user with the same time in file
    order, which is right where the file's order means something (positions instead of times);
    `ties="shuffle"` puts them in an order drawn with `seed`, which is right where many actions share a
    second or a day, and the file may be sorted by id. Raises `DataError`.
    """
    folder = Path(folder)
    name = folder.resolve().name
    if not name.isprintable():  # it stands in artifacts, which hold no other name
        raise DataError(f"the name of the folder, {name[:40]!a}, holds characters that cannot be printed")
    tolerances = tolerance if isinstance(tolerance, Tolerances) else Tolerances(tolerance)
    raw_items = read_table(find_file(folder, "items"))
    raw_interactions = read_table(find_file(folder, "interactions"))
    items, items_sieve = validate_items(raw_items, tolerances, strict)
    all_ids, _ = ids(raw_items.frame["item_id"], raw_items.file)
    interactions, sieve = validate_interactions(raw_interactions, items, all_ids, raw_items.file, tolerances, strict)
    content = f"items {raw_items.sha256}\ninteractions {raw_interactions.sha256}\n"
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    notes = on_items(raw_items)
    ratings = interactions["rating"] if "rating" in interactions.columns else None
    notes += on_interactions(raw_interactions, INTERACTION_COLUMNS, ratings)
    report = DataReport((*items_sieve.findings, *sieve.findings), tuple(notes))
    dataset = assemble(name, items, interactions, sha256, report)
    return shuffle_ties(dataset, seed) if ties == "shuffle" else dataset


def assemble(name: str, items: pl.DataFrame, interactions: pl.DataFrame, sha256: str, report: DataReport) -> Dataset:
    """A `Dataset` from usable items and interactions in file order; users in order of first appearance."""
    permutation = _seeded(sha256, "rows").permutation(items.height)
    items = items[permutation]
    row_of = items.select("item_id", pl.int_range(pl.len(), dtype=pl.Int32).alias("row"))
    users = interactions.select("user_id").unique(maintain_order=True)
    user_of = users.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("user"))
    coded = interactions.join(row_of, on="item_id", how="left", maintain_order="left")
    coded = coded.join(user_of, on="user_id", how="left", maintain_order="left")
    coded = coded.sort("user", "timestamp", maintain_order=True)
    lengths = np.bincount(coded["user"].to_numpy(), minlength=users.height)
    dataset = Dataset(
        name=name,
        items=items,
        user_ids=tuple(users["user_id"].to_list()),
        offsets_U1=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=coded["row"].to_numpy().astype(np.int32),
        timestamps=coded["timestamp"].to_numpy().copy(),
        columns=coded.drop("user_id", "item_id", "timestamp", "row", "user"),
        sha256=sha256,
        report=report,
    )
    return replace(dataset, report=replace(report, notes=(*report.notes, *_notes(dataset))))


def shuffle_ties(dataset: Dataset, seed: int) -> Dataset:
    """The same data with interactions of one user at the same time in a random order drawn with `seed`."""
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths_U)
    chance = np.random.default_rng(seed).random(dataset.n_interactions)
    order = np.lexsort((chance, dataset.timestamps, users))
    note = f"interactions of one user at the same time were put in random order, seed {seed}"
    return replace(
        dataset,
        rows=dataset.rows[order],
        columns=dataset.columns[order],
        report=replace(dataset.report, notes=(*dataset.report.notes, note)),
        ties=f"shuffled with seed {seed}",
    )


def _seeded(sha256: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{purpose} {sha256}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def tied_with_the_one_before(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """[R] whether an interaction has the same user and time as the one before it."""
    tied = np.zeros(dataset.n_interactions, dtype=bool)
    tied[1:] = dataset.timestamps[1:] == dataset.timestamps[:-1]
    tied[dataset.offsets_U1[:-1]] = False
    return tied


def _notes(dataset: Dataset) -> list[str]:
    notes = []
    if dataset.order_only:
        notes.append("timestamps are positions in the user's sequence, not times")
    tied = np.flatnonzero(tied_with_the_one_before(dataset))
    if len(tied):
        share = f"{100 * len(tied) / dataset.n_interactions:.1f} %"
        ascending = _share_ascending(dataset, tied)
        telling = ascending > 0.6 and len(tied) >= 50
        notes.append(
            f"{len(tied):,} interactions ({share}) have the same time as the one before; in the "
            f"file {100 * ascending:.0f} % of these stand in ascending item id order"
            + (": that order says something about ids, so shuffle ties" if telling else "")
        )
    pairs = dataset.rows.astype(np.int64) + dataset.n_items * np.repeat(np.arange(dataset.n_users), dataset.lengths_U)
    repeats = len(pairs) - pl.Series(pairs).n_unique()
    if repeats:
        notes.append(f"{repeats:,} interactions are with an item the user had before; they are kept")
    short = int((dataset.lengths_U < 3).sum())
    if short:
        notes.append(f"{short:,} users have fewer than 3 interactions and can only be trained on")
    return notes


def _share_ascending(dataset: Dataset, tied: Ints) -> float:
    """Share of the interactions in `tied` whose id is greater than the id before it; 0.5 is expected by chance.

    Ids are compared as numbers where both are.
    """
    ids = dataset.items["item_id"]
    numbers = ids.set(~ids.str.contains(r"^\d+$"), None).cast(pl.Int64, strict=False)
    before, after = dataset.rows[tied - 1], dataset.rows[tied]
    by_number = numbers[before] < numbers[after]
    return float(by_number.fill_null(ids[before] < ids[after]).mean())  # type: ignore[arg-type]
