"""Signals from the first moment on: before the libraries are there, which takes seconds.

Process 1 of a container has no default action for a signal: without a handler SIGTERM is lost, and the service would
come up after it was told to end. Imports nothing that takes time.
"""

from __future__ import annotations

import os
import signal

ENDING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


def signals_that_end() -> tuple[signal.Signals, ...]:
    """Return the signals that end the service in good order. SIGHUP (the terminal is gone) is not among them where
    whoever started it turned it off, as `nohup` does."""
    off = "SIGHUP" if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ""
    return tuple(number for number in ENDING if number.name != off)


def end_on_signals() -> None:
    """End at once on a signal, with code 0, until the server takes over: nothing has begun that could be lost."""
    for number in signals_that_end():
        signal.signal(number, _end)


def _end(number: int, frame: object) -> None:
    # Not by an exception: a library may catch it while it is being imported.
    os.write(2, f"{signal.Signals(number).name} before the start was over: the service ends\n".encode())
    os._exit(0)
