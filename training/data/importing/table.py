"""A file as read, before its columns are known, and what its columns are taken for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import polars as pl

from training.data.report import Place
from training.data.tables import LINE, RawTable

Kind = Literal["interactions", "items", "other"]
INTERACTION_ROLES = ("user", "item", "time", "rating", "event", "split", "review", "summary")
ITEM_ROLES = ("title", "categories", "brand", "description", "price", "attributes")
ROLES = (*INTERACTION_ROLES, *ITEM_ROLES)
BY_NAMES = "names of columns"
NONE = "none"
"""The column of a role that is to stay without one."""


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a text file; None: detected from the file."""

    encoding: str | None = None
    separator: str | None = None
    header: bool | None = None


@dataclass(frozen=True)
class Table:
    """Rows of one file, or of one member of an archive.

    `form` says in words how it was read. Without a `header` columns are called column_1, column_2, …. A row's line is
    its place in `lines`, or else `first` + its index, plus the line ends inside of cells where `multiline`. `marker`:
    the column of what stood on a line of its own above the rows.
    """

    name: str
    frame: pl.DataFrame
    form: str
    header: bool = True
    first: int = 1
    multiline: bool = False
    lines: pl.Series | None = None
    broken: tuple[Place, ...] = ()
    marker: str = ""

    def with_frame(self, frame: pl.DataFrame) -> Table:
        """The same file with other columns; the rows are the same."""
        return replace(self, frame=frame)

    def raw(self, columns: Mapping[str, str]) -> RawTable:
        """The columns asked for (new name → column) with the line of every row; rows without any cell are dropped."""
        line = self.line_numbers()
        frame = self.frame.select(pl.col(column).alias(name) for name, column in columns.items())
        frame = frame.with_columns(line.cast(pl.Int64).alias(LINE))
        if len(columns) and self.lines is None and frame[next(iter(columns))].null_count():
            frame = frame.filter(~self.frame.select(pl.all_horizontal(pl.all().is_null())).to_series())
        return RawTable(self.name, frame, self.broken, "")

    def line_numbers(self) -> pl.Series:
        """The line of every row in its file."""
        return self.lines if self.lines is not None else self._counted()

    def _counted(self) -> pl.Series:
        rows = pl.int_range(self.first, self.first + self.frame.height, dtype=pl.Int64, eager=True)
        texts = [name for name, dtype in self.frame.schema.items() if dtype == pl.String]
        if not self.multiline or not texts:
            return rows
        inside = self.frame.select(
            pl.sum_horizontal(pl.col(name).str.count_matches("\n", literal=True) for name in texts).fill_null(0)
        ).to_series()
        return rows + inside.cum_sum().shift(1).fill_null(0).cast(pl.Int64)


@dataclass(frozen=True)
class Guess:
    """Interpretation of a table: `columns` maps roles to its columns, and `doubts` say what is not certain.

    `ordered`: the order of a user's rows is the order in time. `separator`: what stands between names of categories.
    """

    table: Table
    kind: Kind
    columns: Mapping[str, str] = field(default_factory=dict)
    by: str = BY_NAMES
    ordered: bool = False
    separator: str = ""
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
