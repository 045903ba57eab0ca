"""Feedback on answers: recent ones are remembered, and a report of what was taken is joined with its rank.

Bounded in every direction: entries, items, reports on one answer, artifacts counted. Knows no HTTP.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.artifacts.loading import AnyLoaded
from service.errors import Conflict, UnknownName
from service.experiments.intervals import Interval, newcombe, wilson
from service.experiments.line_file import LineFile
from service.observability.metrics import Metrics

ITEMS_PER_ENTRY = 50  # on average; longer answers push older ones out earlier
REPORTS_PER_ANSWER = 100
ARTIFACTS_COUNTED = 64  # versions whose counts are kept
LABELS = 50  # names of artifacts that get series of their own


@dataclass(slots=True)
class Tally:
    """Counts of one version of an artifact: answers, those with a report, those of which an item was taken."""

    name: str
    version: str
    recipe: str
    answers: int = 0
    rated: int = 0
    hits: int = 0


@dataclass(slots=True)
class Shown:
    """An answer that is remembered."""

    tally: Tally
    items: tuple[str, ...]
    reports: dict[str, int | None] = field(default_factory=dict)  # item id → its rank, None for a miss


@dataclass(frozen=True, slots=True)
class Joined:
    """A report joined with its answer; `rank` is None where the item was not recommended."""

    shown: Shown
    rank: int | None
    duplicate: bool


class Feedback:
    """Remembers answers, joins reports, keeps score. Runs on the event loop; only the log file has a thread."""

    def __init__(self, entries: int, metrics: Metrics, log_file: Path | None = None) -> None:
        self._entries = entries
        self._metrics = metrics
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._items = 0
        self._tallies: OrderedDict[tuple[str, str], Tally] = OrderedDict()
        self._labels: set[str] = set()
        self._file = None if log_file is None else LineFile(log_file, metrics)

    def open(self) -> None:
        """Open the log file, where there is one; raises StartError."""
        if self._file is not None:
            self._file.open()

    def close(self) -> None:
        """Write what waits and close the log file. Blocks."""
        if self._file is not None:
            self._file.close()

    def announce(self, name: str) -> None:
        """Let the series of an artifact exist from its loading on, so that none can be told from zero."""
        label = self._label(name)
        for hit in ("true", "false"):
            self._metrics.feedback(label, hit)
        self._metrics.feedback_rank(label)

    def remember(self, request_id: str, parts: AnyLoaded, items: Sequence[str], source: str) -> None:
        """Keep an answer, at the cost of the oldest; an id that comes again stands for the newer answer."""
        if self._file is not None:
            self._file.write({
                "kind": "answer", "time": time.time(), "request_id": request_id, "artifact": parts.name,
                "version": parts.version, "source": source, "items": items,
            })  # fmt: skip
        if not self._entries:
            return
        tally = self._tally(parts)
        tally.answers += 1
        if (again := self._shown.pop(request_id, None)) is not None:
            self._items -= len(again.items)
        self._shown[request_id] = Shown(tally, tuple(items))
        self._items += len(items)
        room = self._entries * ITEMS_PER_ENTRY
        while len(self._shown) > self._entries or (self._items > room and len(self._shown) > 1):
            _, oldest = self._shown.popitem(last=False)
            self._items -= len(oldest.items)

    def report(self, request_id: str, item_id: str) -> Joined:
        """Join a report that `item_id` was taken with its answer; the same report again changes nothing.

        Raises UnknownName (no such answer is remembered), Conflict (too many items for one answer).
        """
        shown = self._shown.get(request_id)
        if shown is None:
            raise UnknownName(
                f"no answer with request_id {request_id!r} is remembered here; the newest {self._entries} answers of "
                "this process are (ANYO_FEEDBACK_ENTRIES)",
                field="request_id",
                code="unknown_request",
            )
        if item_id in shown.reports:
            return Joined(shown, shown.reports[item_id], duplicate=True)
        if len(shown.reports) == REPORTS_PER_ANSWER:
            raise Conflict(
                f"{REPORTS_PER_ANSWER} items were reported for this answer already, and more are not counted",
                code="too_many_reports",
            )
        rank = shown.items.index(item_id) + 1 if item_id in shown.items else None
        self._count(shown, rank)
        shown.reports[item_id] = rank
        if self._file is not None:
            self._file.write({
                "kind": "feedback", "time": time.time(), "request_id": request_id, "artifact": shown.tally.name,
                "version": shown.tally.version, "item_id": item_id, "rank": rank,
            })  # fmt: skip
        return Joined(shown, rank, duplicate=False)

    def summary(self, baseline: str) -> dict[str, Any]:
        """Return the rates of every version and their differences from the newest version of `baseline`."""
        rows = list(self._tallies.values())
        base = next((row for row in reversed(rows) if row.name == baseline), None)
        return {
            "baseline": None if base is None else {"name": base.name, "version": base.version},
            "items": [_row(row, base) for row in rows],
            "next": None,
        }

    def _count(self, shown: Shown, rank: int | None) -> None:
        tally = shown.tally
        tally.rated += not shown.reports
        tally.hits += rank is not None and all(known is None for known in shown.reports.values())
        label = self._label(tally.name)
        self._metrics.feedback(label, "false" if rank is None else "true").inc()
        if rank is not None:
            self._metrics.feedback_rank(label).observe(rank)

    def _tally(self, parts: AnyLoaded) -> Tally:
        key = (parts.name, parts.version)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = Tally(parts.name, parts.version, parts.recipe)
            if len(self._tallies) > ARTIFACTS_COUNTED:
                self._tallies.popitem(last=False)
        return tally

    def _label(self, name: str) -> str:
        if name not in self._labels and len(self._labels) == LABELS:
            return "other"
        self._labels.add(name)
        return name


def _row(row: Tally, base: Tally | None) -> dict[str, Any]:
    hit, taken = wilson(row.hits, row.rated), wilson(row.hits, row.answers)
    differences = None
    if base is not None and base is not row:
        differences = {
            "hit_rate": _shown_as(newcombe(hit, wilson(base.hits, base.rated))),
            "taken_rate": _shown_as(newcombe(taken, wilson(base.hits, base.answers))),
        }
    return {
        "name": row.name,
        "version": row.version,
        "recipe": row.recipe,
        "answers": row.answers,
        "rated": row.rated,
        "hits": row.hits,
        "hit_rate": _shown_as(hit),
        "taken_rate": _shown_as(taken),
        "minus_baseline": differences,
    }


def _shown_as(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.value, "low": interval.low, "high": interval.high}
