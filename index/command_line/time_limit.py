"""The option ``--time-budget`` of commands that give a whole answer or none: it ends them wherever they are.

A training run keeps its best epoch and has a budget of its own (`training.loop.budget`). These commands have nothing to
keep, and spend most of their time inside libraries; a timer of the system interrupts them there, as Ctrl-C does.
Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer

A_YEAR = 366 * 24 * 60


class OutOfTimeError(BaseException):
    """The budget ended. Not an `Exception`: what handles errors of a library must not take it for one."""


def minutes(value: float | None) -> float | None:
    """Check a time budget: a number over zero, of at most a year."""
    if value is not None and not 0 < value <= A_YEAR:
        raise typer.BadParameter(f"{value:g} is not allowed; minutes are over 0 and at most {A_YEAR}")
    return value


TimeBudget = Annotated[float | None, typer.Option(callback=minutes, help="End with an error after this many minutes.")]


@contextlib.contextmanager
def time_limit(budget: float | None) -> Iterator[None]:
    """Interrupt the block after so many minutes; for the main thread.

    Args:
        budget: minutes, over 0; None: no limit.

    Raises:
        OutOfTimeError: the block took longer. `index.command_line.border` makes it one sentence.
    """
    if budget is None:
        yield
        return

    def end(number: int, frame: object) -> NoReturn:
        raise OutOfTimeError(
            f"the time budget of {budget:g} min ended before the command did: give more with --time-budget"
        )

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, 60 * budget)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
