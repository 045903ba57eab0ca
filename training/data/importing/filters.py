"""Filters of interactions: kinds of events, ratings, repeats, a core; and the order of those with equal times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import polars as pl

from training.data.importing.options import ImportOptions
from training.data.report import DataError, shown

_Filter = Callable[[pl.DataFrame, ImportOptions], pl.DataFrame]


def filtered(frame: pl.DataFrame, options: ImportOptions) -> tuple[pl.DataFrame, list[str]]:
    """The interactions that stay, and how many rows each filter took; raises `DataError` where none are left."""
    notes = []
    for words, keep in _filters(options):
        kept = keep(frame, options)
        if kept.height < frame.height:
            notes.append(f"{frame.height - kept.height:,} of {frame.height:,} interactions left out: {words}")
        if kept.is_empty():
            raise DataError(f"no interactions are left; the last were left out: {words}")
        frame = kept
    return frame, notes


def _filters(options: ImportOptions) -> Iterator[tuple[str, _Filter]]:
    if options.events:
        yield "their kind of event is not among --events", _chosen_events
    if options.min_rating is not None:
        yield f"their rating is under {options.min_rating:g}, or missing", _well_rated
    yield "they repeat user, item and time of an earlier row", _once
    if options.events and len(set(options.events.values())) > 1:
        yield "the user has an event of greater weight with the same item", _heaviest
    if options.repeats != "keep":
        yield f"only the {options.repeats} of a user's interactions with an item stays (--repeats)", _without_repeats
    if options.core != (1, 1):
        user, item = options.core
        yield f"their user has under {user} or their item under {item} interactions (--core)", _core


def _chosen_events(frame: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    if "event" not in frame.columns:
        raise DataError("--events is given, and no column tells kinds of events; name it: --map event=COLUMN")
    kinds = set(frame["event"].drop_nulls().unique())
    unknown = [name for name in options.events or {} if name not in kinds]
    if unknown:
        raise DataError(
            f"--events {unknown[0]}: there is no such kind; there are {', '.join(sorted(map(shown, kinds))[:12])}"
        )
    return frame.filter(pl.col("event").is_in([*(options.events or {})]))


def _well_rated(frame: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    if "rating" not in frame.columns:
        raise DataError("--min-rating is given, and no column holds ratings; name it: --map rating=COLUMN")
    return frame.filter(pl.col("rating") >= options.min_rating)


def _once(frame: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    # Of equal rows the one with the greatest weight stays, so that a click does not hide the purchase of its second.
    if options.events and len(set(options.events.values())) > 1:
        frame = _heaviest(frame, options, "timestamp")
    return frame.unique(["user_id", "item_id", "timestamp"], keep="first", maintain_order=True)


def _heaviest(frame: pl.DataFrame, options: ImportOptions, *more: str) -> pl.DataFrame:
    weight = pl.col("event").replace_strict(dict(options.events or {}), return_dtype=pl.Float64)
    return frame.filter(weight == weight.max().over("user_id", "item_id", *more))


def _without_repeats(frame: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    place = pl.int_range(pl.len())
    ordered = frame.with_columns(place.alias("_place")).sort("timestamp", maintain_order=True)
    keep: Literal["first", "last"] = "first" if options.repeats == "first" else "last"
    return ordered.unique(["user_id", "item_id"], keep=keep, maintain_order=True).sort("_place").drop("_place")


def _core(frame: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    user, item = options.core
    while True:
        kept = frame.filter((pl.len().over("user_id") >= user) & (pl.len().over("item_id") >= item))
        if kept.height == frame.height or kept.is_empty():
            return kept
        frame = kept


def ordered(frame: pl.DataFrame, options: ImportOptions) -> pl.DataFrame:
    """User after user in order of first appearance, oldest first; what has one time by chance, or as in the file."""
    user = frame["user_id"].cast(pl.Categorical).to_physical()
    keys = frame.select(user.alias("user"), "timestamp")
    if options.ties == "shuffle":
        chance = np.random.default_rng(options.seed).permutation(frame.height)
        keys = keys.with_columns(pl.Series("chance", chance))
    return frame[keys.select(pl.arg_sort_by(*keys.columns, maintain_order=True)).to_series()]
