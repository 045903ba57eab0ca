"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

from anyo_client.errors import AnyoError, NotReachedError

AGAIN = frozenset({429, 503})
"""Statuses of what the service refused before it did anything: the queue is full, or it is not ready."""


@dataclass(frozen=True)
class Retries:
    """Retries of a request after status 429 or 503 or a failed connection.

    The wait is the value of `Retry-After`. Without it, the wait starts at `first_wait_s`, doubles with each retry and
    is randomised by half of it, so that many clients do not retry at once. `times` 0 turns retries off.
    """

    times: int = 3
    first_wait_s: float = 0.2
    longest_s: float = 30.0

    def wait(self, error: Exception, done: int, waited_s: float) -> float | None:
        """Seconds to wait before the request is sent again; None: the error is final.

        Args:
            error: what the last try raised.
            done: tries so far, from 1.
            waited_s: seconds waited so far.
        """
        refused = isinstance(error, AnyoError) and error.status in AGAIN
        if done > self.times or not (refused or isinstance(error, NotReachedError)):
            return None
        told = error.retry_after if isinstance(error, AnyoError) else None
        wait = told if told is not None else self.first_wait_s * 2 ** (done - 1) * random.uniform(0.75, 1.25)
        return wait if waited_s + wait <= self.longest_s else None
