"""Workbooks of Excel, one table a sheet (polars over fastexcel, the extra `excel`)."""

from __future__ import annotations

import io

import polars as pl

from training.data.importing.table import ReadOptions, Table
from training.data.report import DataError

PRIORITY = 2
_AS_CSV = "save each of its sheets as csv (UTF-8) and import those"


def matches(name: str, data: bytes) -> bool:
    """Whether the content is a workbook (old or new); other archives were taken apart before."""
    return data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")) or name.lower().endswith((".xlsx", ".xls"))


def read(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """The sheets that have rows; raises `DataError`."""
    header = options.header is not False
    try:
        sheets = pl.read_excel(io.BytesIO(data), sheet_id=0, has_header=header, raise_if_empty=False)
    except ModuleNotFoundError:
        raise DataError(
            f"{name} is a workbook; install anyo with the extra 'excel' (fastexcel), or {_AS_CSV}"
        ) from None
    except Exception as error:  # fastexcel has errors of its own, which are not there without it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{name} cannot be read as a workbook ({reason}); {_AS_CSV}") from None
    full = {title: frame for title, frame in sheets.items() if frame.height}
    if not full:
        raise DataError(f"{name} is a workbook without rows")
    return [_table(f"{name}[{title}]", frame, header) for title, frame in full.items()]


def _table(name: str, frame: pl.DataFrame, header: bool) -> Table:
    """Ids are whole numbers in a cell and come as 17850.0; so they are taken back where all of a column are."""
    whole = [
        column
        for column in frame.columns
        if frame.schema[column].is_float() and (frame[column].drop_nulls() % 1 == 0).all()
    ]
    frame = frame.with_columns(pl.col(whole).cast(pl.Int64, strict=False))
    return Table(name, frame, "workbook", header=header, first=2 if header else 1)
