"""Users' histories from the interactions file of a data set folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from service.errors import StartError

FORMS = ("parquet", "csv", "csv.gz", "jsonl", "jsonl.gz")
NEEDED = ("user_id", "item_id", "timestamp")
UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
UP_TO = {"s": 1e11, "ms": 1e14, "us": 1e17}  # the largest times of today's data in each unit, with room


@dataclass(frozen=True)
class Histories:
    """All histories, one row a user in the order of their ids; each oldest first, rows of one time in the file's order.

    Attributes:
        users: user_id, item_id (list), timestamp (list, Unix seconds).
        source: the file.
    """

    users: pl.DataFrame
    source: Path

    def part(self, first: int, count: int) -> Iterator[tuple[str, list[str], list[float]]]:
        """Some users with their items and times."""
        yield from self.users.slice(first, count).iter_rows()


def read_histories(folder: Path, unit: str = "auto") -> Histories:
    """Read the one `interactions` file of a folder.

    Args:
        folder: a data set (docs/reference/data-format.md).
        unit: of numeric timestamps: s, ms, us, ns, or auto, which tells by their size.

    Raises:
        StartError: there is no such file, or it lacks a column or holds a value that cannot be read; one sentence.
    """
    found = [path for form in FORMS if (path := folder / f"interactions.{form}").is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise StartError(f"{folder} holds {names} of interactions.{{{','.join(FORMS)}}}; exactly one is needed")
    path = found[0]
    try:
        table = _read(path)
        if missing := [name for name in NEEDED if name not in table.columns]:
            raise StartError(f"{path} has no column {missing[0]!r}; it has {', '.join(table.columns)}")
        table = table.select(
            pl.col("user_id").cast(pl.String), pl.col("item_id").cast(pl.String), _seconds(table, unit)
        )
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise StartError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if bad := table.select(pl.any_horizontal(pl.all().is_null()).sum()).item():
        raise StartError(f"{path}: {bad} rows lack a user, an item or a time; `data import` sets such rows aside")
    users = (
        table.sort("timestamp", maintain_order=True)
        .group_by("user_id", maintain_order=True)
        .agg(pl.col("item_id"), pl.col("timestamp"))
        .sort("user_id")
    )
    return Histories(users, path)


def _read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path, columns=None)
    if ".csv" in path.name:
        return pl.read_csv(path, schema_overrides={"user_id": pl.String, "item_id": pl.String})
    return pl.read_ndjson(path)


def _seconds(table: pl.DataFrame, unit: str) -> pl.Expr:
    """Times as Unix seconds, null where one cannot be read."""
    times = pl.col("timestamp")
    kind = table.schema["timestamp"]
    if kind == pl.String:
        numbers = table["timestamp"].cast(pl.Float64, strict=False)
        if numbers.null_count():
            return times.str.to_datetime(time_zone="UTC", strict=False).dt.epoch("us").cast(pl.Float64) / 1e6
        times, largest = times.cast(pl.Float64), numbers.max()
    elif kind.is_temporal():
        return times.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
    else:
        times, largest = times.cast(pl.Float64), table["timestamp"].cast(pl.Float64).max()
    if unit == "auto":
        unit = next((name for name, most in UP_TO.items() if float(largest or 0) < most), "ns")  # type: ignore[arg-type]
    return times / UNITS[unit]
