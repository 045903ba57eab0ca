"""Whether the times of a data set can be what they are taken for."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import numpy as np

from training.data.columns import UNITS
from training.data.dataset import Dataset

_DAY = 86_400
_EARLIEST = datetime(1995, 1, 1, tzinfo=UTC).timestamp()


def unit_of(dataset: Dataset) -> str:
    """`seconds`, `milliseconds`, … where all times lie in that unit's range; "" where they do not."""
    least, most = float(dataset.timestamps.min()), float(dataset.timestamps.max())
    return next((unit for unit, start in UNITS.items() if start <= least and most < 100 * start), "")


def span(dataset: Dataset) -> tuple[str, str] | None:
    """First and last moment as ISO 8601, where times are counted from 1970."""
    unit = unit_of(dataset)
    if not unit:
        return None
    scale = UNITS[unit] / UNITS["seconds"]
    ends = (float(dataset.timestamps.min()) / scale, float(dataset.timestamps.max()) / scale)
    first, last = (datetime.fromtimestamp(end, UTC).isoformat(timespec="seconds") for end in ends)
    return first, last


def oddities(dataset: Dataset) -> list[str]:
    """Suspicious facts about the times, one sentence each."""
    times, found = dataset.timestamps, []
    if not unit_of(dataset):
        if dataset.order_only:
            return []  # said by the data set itself
        ordered = np.sort(times)
        if dataset.n_interactions > 1 and (np.diff(ordered) == 1).all():
            found.append(
                "times are a counter over all rows, no times: they order each user's rows, and a split by global time "
                "would cut by user"
            )
        else:
            found.append(
                "times are no moments counted from 1970; only their order counts, and global-time splits by it"
            )
        return found
    seconds = times / (UNITS[unit_of(dataset)] / UNITS["seconds"])
    late, early = int((seconds > time.time() + _DAY).sum()), int((seconds < _EARLIEST).sum())
    if late:
        found.append(f"{late:,} interactions lie in the future")
    if early:
        found.append(f"{early:,} interactions are from before 1995")
    if len(np.unique(times)) == 1:
        found.append("all interactions have the same time, so that nothing tells their order")
    elif (seconds % _DAY == 0).mean() > 0.9:
        found.append(
            "times are days: what happened on one day has no order; --ties shuffle where the file's order tells ids"
        )
    return found
