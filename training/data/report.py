"""Invalid rows of a data set, and the refusal where there are too many.

Nothing is repaired in silence: a row that cannot be used is counted, shown by file and line, and left out
only while rows of its kind stay within a stated share of the file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_TOLERANCE = 0.01
SHOWN = 3  # examples kept of each kind
_WIDTH = 60  # characters shown of what stood there


class DataError(Exception):
    """A data set cannot be used; the message says where, what stood there and what is allowed."""


@dataclass(frozen=True)
class Tolerances:
    """Shares of a file's rows that may be odd: `share` in any one way, or another for a kind in `by_kind`.

    Raises:
        DataError: a kind that there is not, or a share that is none.
    """

    share: float = DEFAULT_TOLERANCE
    by_kind: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, share in self.by_kind.items():
            if kind not in KINDS:
                raise DataError(f"{kind!r} is no kind of finding; kinds are {', '.join(KINDS)}")
            if not 0 <= share <= 1:
                raise DataError(f"{kind}={share:g} is not allowed; a share is between 0 and 1")
        if not 0 <= self.share <= 1:
            raise DataError(f"tolerance is {self.share}; it is a share between 0 and 1")

    def of(self, kind: str) -> float:
        """The share allowed for a kind."""
        return self.by_kind.get(kind, self.share)


KINDS = (
    "broken_row", "wrong_value", "missing_id", "missing_time", "empty_title", "mixed_units", "duplicate_item",
    "unknown_item", "item_left_out", "duplicate_interaction", "wrong_cell",
)  # fmt: skip
"""Kinds of findings that have a limit."""


@dataclass(frozen=True)
class Place:
    """One spot in a data file: line (from 1, header included; for parquet the row), column, content."""

    file: str
    line: int
    column: str
    found: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return where + (f"column {self.column} holds {self.found}" if self.column else self.found)


@dataclass(frozen=True)
class Finding:
    """All rows of one file that are odd in one way; `limit` is the share allowed (None: only told)."""

    kind: str
    file: str
    count: int
    of: int
    what: str
    done: str
    places: tuple[Place, ...] = ()
    limit: float | None = None

    @property
    def refused(self) -> bool:
        """Whether there are more of these than the limit allows."""
        return self.limit is not None and self.count > self.limit * self.of

    def __str__(self) -> str:
        rows = f"{self.count:,} of {self.of:,} rows" if self.of else f"{self.count:,} rows"
        share = f" ({_percent(self.count / self.of)})" if self.of else ""
        allowed = ""
        if self.limit is not None:
            allowed = f", allowed: {_percent(self.limit) if self.limit else 'none'}"
        outcome = "refused" if self.refused else self.done
        if self.refused and self.kind in KINDS and self.of:
            allowed += f"; --allow {self.kind}={math.ceil(100 * self.count / self.of) / 100:g} goes on without them"
        examples = "".join(f"\n  {place}" for place in self.places)
        return f"{self.file}: {rows}{share} {self.what}; {outcome}{allowed}{examples}"


@dataclass(frozen=True)
class DataReport:
    """Everything odd in a data set, in the order it was found; `notes` are facts that are no fault."""

    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def count(self, kind: str) -> int:
        """Rows found of one kind (see `training.data.format` for the kinds); 0 where there are none."""
        return sum(finding.count for finding in self.findings if finding.kind == kind)

    def lines(self) -> list[str]:
        """The report as text, one entry per finding (with its examples) or note."""
        return [str(finding) for finding in self.findings] + [f"note: {note}" for note in self.notes]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data for JSON."""
        findings = [
            {
                "kind": finding.kind,
                "file": finding.file,
                "count": finding.count,
                "of": finding.of,
                "done": finding.done,
                "examples": [str(place) for place in finding.places],
            }
            for finding in self.findings
        ]
        return {"findings": findings, "notes": list(self.notes)}


def shown(value: object) -> str:
    """A value as it stood in the file, quoted and cut to a readable length."""
    text = repr(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 2] + "…'"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
