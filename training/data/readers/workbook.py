"""Workbooks of Excel: refused, with what to do."""

from __future__ import annotations

from training.data.importing.table import ReadOptions, Table
from training.data.report import DataError

PRIORITY = 2


def matches(name: str, data: bytes) -> bool:
    """Whether the content is a workbook (old or new); other archives were taken apart before."""
    return data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")) or name.lower().endswith((".xlsx", ".xls"))


def read(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """Raise `DataError`."""
    raise DataError(f"{name} is a workbook; save each of its sheets as csv (UTF-8) and import those")
