"""Known sources of data, one file each; a module has ``recognise``: what a table of that source is, or None."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol, cast

from training.data.importing.table import Guess, Table


class Source(Protocol):
    """Interface of the modules of this folder."""

    def recognise(self, table: Table) -> Guess | None:
        """The kind of the table; None where it is not of the source."""


@cache
def sources() -> tuple[Source, ...]:
    """All sources, in alphabetical order."""
    found = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return tuple(cast(Source, module) for module in found)


def recognise(table: Table) -> Guess | None:
    """The kind of the table by the first source that knows it."""
    return next((guess for source in sources() if (guess := source.recognise(table)) is not None), None)
