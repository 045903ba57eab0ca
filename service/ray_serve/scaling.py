"""How many replicas encode: as many as the positions that wait and are computed need."""

from __future__ import annotations

import math
from typing import Any

POSITIONS = "positions"
"""Of what replicas report."""
SHORTEST_S, LONGEST_S = 5.0, 30.0
"""Of the time that a report is the mean of: shorter, one burst decides; Ray Serve's own is the longer one."""


def scaling_options(least: int, most: int, grow_s: float, shrink_s: float) -> dict[str, float]:
    """Return options of Ray Serve's `AutoscalingConfig`, but for the policy.

    Args:
        least, most: replicas.
        grow_s, shrink_s: how long more, or fewer, must have been wanted without a break before the number changes.
    """
    return {
        "min_replicas": least,
        "max_replicas": most,
        "upscale_delay_s": grow_s,
        "downscale_delay_s": shrink_s,
        "look_back_period_s": min(max(grow_s, SHORTEST_S), LONGEST_S),
    }


class PositionsPolicy:
    """A policy of Ray Serve. Every replica reports what all ingresses told it, so that the largest report counts.

    Args:
        per_replica: positions, waiting and under way, that one replica is for.
    """

    def __init__(self, per_replica: float) -> None:
        self._per_replica = per_replica

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """Return the replicas that are wanted; Ray Serve holds it within the limits and waits as it is told."""
        reports = (context.aggregated_metrics or {}).get(POSITIONS) or {}
        return replicas_for(max(reports.values(), default=0.0), self._per_replica), {}


def replicas_for(positions: float, per_replica: float) -> int:
    """Return how many replicas so many positions need, at least one."""
    return max(1, math.ceil(positions / per_replica))
