"""Changes to ``catalog.parquet``: sizes that compression hides, rows that do not fit."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from testing.hostile.changes import KINDS, kind, seal


def catalog(name: str, change: Callable[[pl.DataFrame, random.Random], pl.DataFrame], **written: Any) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = folder / "catalog.parquet"
        change(pl.read_parquet(path.read_bytes()), rng).write_parquet(path, **{"compression": "zstd", **written})
        seal(folder)

    KINDS[name] = apply


def rows_of(frame: pl.DataFrame, rows: int, *, equal: bool) -> pl.DataFrame:
    ids = pl.lit("x") if equal else pl.format("i{}", pl.int_range(rows))
    made = {"row": pl.int_range(rows), "item_id": ids, "title": pl.lit("t"),
            "categories": pl.lit([""], dtype=pl.List(pl.String)),
            "popularity": pl.lit(1, dtype=pl.Int64), "popularity_counted_on": pl.lit("train")}  # fmt: skip
    return pl.select(pl.int_range(rows).alias("n")).select(**made).select(frame.columns)


def repeated(text: str) -> Callable[[pl.DataFrame, random.Random], pl.DataFrame]:
    return lambda frame, _: frame.with_columns(title=pl.Series([text] * len(frame)))


catalog("catalog-65-kb-titles", repeated("a" * 65_000))
catalog("catalog-5-mb-titles", repeated("a" * 5_000_000))
catalog("catalog-20-mb-titles", lambda frame, _: frame.with_columns(title=pl.lit("a" * 20_000_000)))
catalog("catalog-million-rows", lambda frame, _: rows_of(frame, 1_000_000, equal=False))
catalog("catalog-five-million-rows", lambda frame, _: rows_of(frame, 5_000_000, equal=True))
catalog("catalog-short", lambda frame, _: frame.head(len(frame) - 1))
catalog("catalog-long", lambda frame, _: pl.concat([frame, frame.head(1)]))
catalog("catalog-no-rows", lambda frame, _: frame.clear())
catalog("catalog-equal-ids", lambda frame, _: frame.with_columns(item_id=pl.lit("same")))
catalog("catalog-empty-ids", lambda frame, _: frame.with_columns(item_id=pl.lit("")))
catalog("catalog-long-ids", lambda frame, _: frame.with_columns(item_id=pl.format("{}" + "x" * 60_000, "item_id")))
catalog("catalog-empty-titles", repeated(""))
catalog("catalog-null", lambda frame, rng: frame.with_columns(pl.lit(None).alias(rng.choice(frame.columns))))
catalog("catalog-numbers", lambda frame, rng: frame.with_columns(pl.lit(1.5).alias(rng.choice(frame.columns))))
catalog("catalog-no-column", lambda frame, rng: frame.drop(rng.choice(frame.columns)))
catalog("catalog-many-columns", lambda frame, _: frame.with_columns(pl.lit(0).alias(f"c{n}") for n in range(5000)))
catalog("catalog-control", lambda frame, _: frame.with_columns(title=pl.format("\x1b]0;x\x07\n\u202e{}", "title")))
catalog(
    "catalog-popularity",
    lambda frame, rng: frame.with_columns(popularity=pl.lit(rng.choice((-(2**63), 2**63 - 1, -1)))),
)
catalog("catalog-rows", lambda frame, rng: frame.with_columns(row=pl.lit(rng.choice((-1, 2**40, 0)), dtype=pl.Int64)))
catalog("catalog-categories", lambda frame, _: frame.with_columns(categories=pl.Series([["x"] * 20_000] * len(frame))))
catalog(
    "catalog-category-names",
    lambda frame, _: frame.with_columns(categories=pl.Series([["y" * 2_000_000]] * len(frame))),
)
catalog("catalog-nested", lambda frame, _: frame.with_columns(categories=pl.Series([[[["x"]]]] * len(frame))))
catalog("catalog-order", lambda frame, rng: frame.sample(len(frame), shuffle=True, seed=rng.randrange(99)))
catalog("catalog-counted-on", lambda frame, _: frame.with_columns(popularity_counted_on=pl.format("{}", "row")))


@kind
def catalog_footer(folder: Path, rng: random.Random) -> None:
    """Sizes and offsets of a parquet file are in its last bytes."""
    path = folder / "catalog.parquet"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack("<I", data[-8:-4])
    for _ in range(rng.choice((1, 3, 10))):
        data[len(data) - 8 - rng.randrange(length)] = rng.choice((0xFF, 0x80, 0, 0x7F, rng.randrange(256)))
    path.write_bytes(data)
    seal(folder)
