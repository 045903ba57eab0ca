"""Intervals for rates: Wilson's for one (1927), Newcombe's for the difference of two (1998, his method 10).

Both stay right where the usual ± formula fails: few answers, or hardly any hits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(hits: int, trials: int) -> Interval | None:
    """Return the rate `hits / trials` with its interval; None without a trial."""
    if trials == 0:
        return None
    rate, z2 = hits / trials, Z_95**2
    centre = (rate + z2 / (2 * trials)) / (1 + z2 / trials)
    half = Z_95 * sqrt(rate * (1 - rate) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def newcombe(first: Interval | None, second: Interval | None) -> Interval | None:
    """Return the difference `first - second` of two independent rates; None where one of them is unknown."""
    if first is None or second is None:
        return None
    difference = first.value - second.value
    below = sqrt((first.value - first.low) ** 2 + (second.high - second.value) ** 2)
    above = sqrt((first.high - first.value) ** 2 + (second.value - second.low) ** 2)
    return Interval(difference, difference - below, difference + above)
