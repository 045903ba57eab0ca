"""A circuit breaker: after enough failures in a row nothing is tried until a probe has succeeded.

Knows neither Redis nor asyncio: it is told how calls ended, and its clock is handed in.

    closed     calls go through; `failures` failures in a row open it
    open       calls are refused at once; after `cooldown_s` a probe is due
    half-open  a probe has succeeded; calls go through, and the next result decides between closed and open

A result counts only in the state in which its call began. Otherwise a call that hung since before the fault
was noticed would, when it times out at last, throw a service that has just recovered back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

State = Literal["closed", "half_open", "open"]


class BreakerOpen(Exception):
    """The call is not even tried; `retry_s` is the time until the next probe is due."""

    def __init__(self, retry_s: float) -> None:
        super().__init__(f"the last calls failed; the next probe is in {retry_s:.1f} s")
        self.retry_s = retry_s


class Breaker:
    """Opens after `failures` failures in a row; `clock` gives seconds that never go back. Not thread-safe."""

    def __init__(self, failures: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self.state: State = "closed"
        self._failures = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._in_a_row = 0
        self._opened_at = 0.0
        self._generation = 0  # of the state; what `enter` returns

    def enter(self) -> int:
        """Return a ticket for one call, to be given to `record`; raises BreakerOpen."""
        if self.state == "open":
            raise BreakerOpen(self.probe_in())
        return self._generation

    def record(self, ticket: int, ok: bool) -> None:
        """Take note of how the call of a ticket ended; a call that was given up is simply not recorded."""
        if ticket != self._generation:
            return
        if ok:
            self._in_a_row = 0
            if self.state == "half_open":
                self._become("closed")
            return
        self._in_a_row += 1
        if self.state == "half_open" or self._in_a_row >= self._failures:
            self.trip()

    def trip(self) -> None:
        """Open now, whatever was counted."""
        self._opened_at = self._clock()
        self._become("open")

    def probe_in(self) -> float:
        """Return the seconds until a probe is due; 0 means now."""
        return max(0.0, self._opened_at + self._cooldown_s - self._clock())

    def probed(self, ok: bool) -> None:
        """Take note of a probe of the open breaker: half-open, or open for another `cooldown_s`."""
        if self.state != "open":
            return
        if ok:
            self._become("half_open")
        else:
            self._opened_at = self._clock()

    def _become(self, state: State) -> None:
        self.state = state
        self._in_a_row = 0
        self._generation += 1
