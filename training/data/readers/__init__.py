"""File formats, one file each; a module has ``PRIORITY`` (the lowest is asked first), ``matches`` and ``read``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol, cast

from training.data.importing.table import ReadOptions, Table
from training.data.report import DataError


class Reader(Protocol):
    """Interface of the modules of this folder."""

    PRIORITY: int

    def matches(self, name: str, data: bytes) -> bool:
        """Whether a file with this name and content is of the format."""

    def read(self, name: str, data: bytes, options: ReadOptions) -> list[Table]:
        """Its tables; raises `DataError`."""


@cache
def readers() -> tuple[Reader, ...]:
    """All formats in the order in which they are asked."""
    found = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return tuple(sorted((cast(Reader, each) for each in found), key=lambda reader: reader.PRIORITY))


def read_tables(name: str, data: bytes, options: ReadOptions) -> list[Table]:
    """Read one file by the first format that it is of; raises `DataError`."""
    if not data.strip():
        raise DataError(f"{name} is empty")
    return next(reader for reader in readers() if reader.matches(name, data)).read(name, data, options)
