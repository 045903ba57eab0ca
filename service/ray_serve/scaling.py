"""How many replicas encode: as many as the positions that wait and are computed need."""

from __future__ import annotations

import math
from typing import Any

POSITIONS = "positions"
"""Of what replicas report."""


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
