"""Parquet."""

from __future__ import annotations

import polars as pl

from training.data.importing.table import ReadOptions, Table
from training.data.report import DataError

PRIORITY = 0


def matches(name: str, data: bytes) -> bool:
    """Whether the content begins as parquet does."""
    return data.startswith(b"PAR1")


def read(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """The one table of the file."""
    try:
        return [Table(name, pl.read_parquet(data), "parquet")]
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{name} cannot be read as parquet: {str(error).splitlines()[0]}") from None
