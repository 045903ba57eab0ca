"""Measures an index at every search effort, and picks the cheapest one that meets a target."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.approximate import ApproximateIndex, overlaps
from index.base import FloatArray, StoredIndex

MOST_QUERIES = 1000


@dataclass(frozen=True)
class Point:
    """One effort of an index: its spec, recall at k, and milliseconds of one query (median and 95th percentile)."""

    parameters: dict[str, Any]
    recall: float
    milliseconds: float
    milliseconds_p95: float

    def shown(self) -> dict[str, Any]:
        """The point as it is written."""
        return {
            "parameters": self.parameters, "recall": self.recall, "milliseconds": self.milliseconds,
            "milliseconds_p95": self.milliseconds_p95,
        }  # fmt: skip


def curve(index: StoredIndex, queries_QD: FloatArray, k: int, repeats: int) -> list[Point]:
    """Recall against exact search over all queries, and the time of ``repeats`` of them one by one, for every variant
    of an index, the least effort first; an exact index is its own only variant."""
    queries_QD = queries_QD[:MOST_QUERIES]
    exact = index.exact_search if isinstance(index, ApproximateIndex) else index.search
    _, exact_QK = exact(queries_QD, k)
    points = []
    for variant in index.variants() or (index,):
        _, found_QK = variant.search(queries_QD, k)
        seconds = _seconds(variant, queries_QD, k, repeats)
        points.append(
            Point(
                variant.spec.parameters,
                round(float(np.mean(overlaps(found_QK, exact_QK))), 4),
                round(1e3 * statistics.median(seconds), 3),
                round(1e3 * float(np.quantile(seconds, 0.95)), 3),
            )
        )
    return points


def cheapest(points: Sequence[Point], recall: float, milliseconds: float | None) -> Point | None:
    """The quickest point with at least this recall, if its median is within the time (None: any); else None."""
    enough = [point for point in points if point.recall >= recall]
    best = min(enough, key=lambda point: point.milliseconds, default=None)
    return None if best is None or (milliseconds is not None and best.milliseconds > milliseconds) else best


def _seconds(index: StoredIndex, queries_QD: FloatArray, k: int, repeats: int) -> list[float]:
    seconds = []
    for number in range(repeats + 1):
        query_1D = queries_QD[[number % len(queries_QD)]]
        start = time.perf_counter()
        index.search(query_1D, k)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]  # the first search warms caches and threads up
