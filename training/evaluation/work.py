"""Progress of one long piece of work."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress

EVERY_S = 30.0
"""Between two lines where there is no terminal."""


class Work:
    """A bar with the time left on a terminal; elsewhere a line now and then with the share done and the time left.

    Args:
        console: where to.
        name: what is done, and how much of it.
        total: steps, in any unit that takes about the same time each.
    """

    def __init__(self, console: Console, name: str, total: int) -> None:
        self._console, self._name, self._total = console, name, total
        self._bar = Progress(console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task(name, total=total) if self._bar else None
        self._done, self._started = 0, time.monotonic()
        self._said = self._started

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int = 1) -> None:
        """``done`` more steps are done."""
        self._done += done
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, done)
        elif time.monotonic() - self._said > EVERY_S:
            self._said = time.monotonic()
            self._console.print(self.line(), highlight=False, markup=False)

    def line(self) -> str:
        """Name, percentage and minutes left."""
        share = self._done / max(1, self._total)
        left = (time.monotonic() - self._started) * (1 - share) / max(share, 1e-9) / 60
        return f"{self._name}: {share:.0%}, about {left:.1f} min left"
