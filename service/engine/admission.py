"""Measures the drain rate of a queue, and estimates the waiting time of new work from it."""

from __future__ import annotations


class DrainRate:
    """Positions a second that leave a queue while others wait behind them.

    The forward pass alone would not tell: other threads take their share. `rate` is what `per_second` of an earlier one
    on the same model said: nothing else is known before the first queue, and a flood fills it in less time than that
    takes to shrink. Only about twice `patience_s` of busy time is remembered, so that the rate follows the times.
    """

    def __init__(self, patience_s: float, rate: float = 0.0) -> None:
        self._patience_s = patience_s
        self._busy_s, self._busy_tokens = (patience_s, patience_s * rate) if rate else (0.0, 0.0)
        self._last_take: tuple[float, int] | None = (
            None  # when a batch that left others waiting was taken, its positions
        )

    def note_taken(self, now: float, tokens: int, *, others_wait: bool) -> None:
        """Note that a batch of so many positions leaves the queue."""
        if self._last_take is not None:
            then, taken = self._last_take
            self._busy_s += now - then
            self._busy_tokens += taken
            if self._busy_s > 2 * self._patience_s:
                self._busy_s, self._busy_tokens = self._busy_s / 2, self._busy_tokens / 2
        self._last_take = (now, tokens) if others_wait else None

    def per_second(self) -> float:
        """Return the positions a second at which the queue has been seen to shrink, 0 where there was none."""
        return self._busy_tokens / self._busy_s if self._busy_s else 0.0

    def too_long_a_wait(self, queued: int) -> float | None:
        """Return how long `queued` positions take where that is beyond the patience, else None.

        None too until the device has been seen busy for as long as the patience: a burst says little.
        """
        if not self._patience_s or self._busy_s < self._patience_s:
            return None
        wait = queued / self.per_second()
        return wait if wait > self._patience_s else None
