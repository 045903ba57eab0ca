"""Everything that uses prometheus_client from inside. pyproject.toml caps its version, because that may change."""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client import Histogram, disable_created_metrics

# A second series for each counter and histogram, with the time of its birth; nobody asked for it.
disable_created_metrics()  # type: ignore[no-untyped-call]


class QuickHistogram(Histogram):
    """A histogram that finds the bucket by bisection: the library looks at one after the other, at every request for
    every stage."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a value; exemplars are not kept."""
        self._raise_if_not_observable()  # type: ignore[no-untyped-call]
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)
