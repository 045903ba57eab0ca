"""The time budget of a run: one clock for everything before its final figures, not for the training alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

from rich.progress import Progress, TaskID

from training.recipe import RecipeError


class OutOfTime(RecipeError):
    """The budget ended before a stage did without which there is no model; nothing was written."""


@dataclass(frozen=True)
class Budget:
    """Minutes from the start of a run; None: as long as it takes."""

    minutes: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Minutes that are left, 0 when it is over."""
        if self.minutes is None:
            return None
        return max(0.0, self.minutes - (time.monotonic() - self.started) / 60)

    def check(self, stage: str) -> None:
        """Raise ``OutOfTime`` when it is over; ``stage`` is what is being done."""
        if self.left == 0.0:
            raise OutOfTime(
                f"the time budget of {self.minutes:g} min ended while {stage}; nothing was written: "
                "give more with --time-budget"
            )


_current: ContextVar[Budget | None] = ContextVar("budget", default=None)


@contextlib.contextmanager
def budget(minutes: float | None) -> Iterator[Budget]:
    """Within it `check_time` looks at this budget."""
    made = Budget(minutes)
    token = _current.set(made)
    try:
        yield made
    finally:
        _current.reset(token)


def check_time(stage: str) -> None:
    """To be called now and then by whatever takes long: ends the run where its budget is over."""
    if (current := _current.get()) is not None:
        current.check(stage)


def minutes_left(stage: str) -> float | None:
    """Minutes that are left of the run's budget; None without one. Raises ``OutOfTime`` where that is nothing."""
    check_time(stage)
    current = _current.get()
    return None if current is None else current.left


def timed(bar: Progress, task: TaskID, stage: str) -> Callable[..., None]:
    """A progress callback that moves a bar and looks at the budget."""

    def advance(done: int = 1) -> None:
        bar.advance(task, done)
        check_time(stage)

    return advance
