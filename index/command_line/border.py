"""Error handling of the command lines: one sentence on standard error, and an exit status for the kind of error.

The programs `python -m training`, `python -m index` and `python -m service` share it, so it imports nothing heavy.

| status | meaning |
| --- | --- |
| 1 | an error of the machine: a full disk, no permission, no memory |
| 2 | an argument is not allowed, the time budget is too short, or another process writes the same folder |
| 70 | an internal error; `ANYO_TRACE=1` shows the traceback |
| 130 | interrupted |
| 141 | the reader of the output closed it |
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from index.command_line.one_writer import BeingWrittenError
from index.command_line.time_limit import OutOfTimeError

FAILED, NOT_ALLOWED, FAULT, INTERRUPTED, READER_GONE = 1, 2, 70, 130, 141
TRACE = "ANYO_TRACE"
_OF_TYPER: tuple[type[Exception], ...] = (
    typer.Exit,
    typer.Abort,
    *(base for base in typer.BadParameter.__mro__ if issubclass(base, Exception) and base is not Exception),
)
"""Exceptions with which typer ends a command: usage errors and `Exit`."""


@contextlib.contextmanager
def border() -> Iterator[None]:
    """End the program with one sentence whatever is raised inside."""
    try:
        yield
        sys.stdout.flush()  # a reader that went away is noticed here and not while Python ends
    except _OF_TYPER:
        raise
    except SystemExit as error:  # rich ends a program so whose reader went away
        if isinstance(error.__context__, BrokenPipeError):
            raise typer.Exit(READER_GONE) from None
        raise
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except (OutOfTimeError, BeingWrittenError) as error:
        say(f"error: {error}")
        raise typer.Exit(NOT_ALLOWED) from None
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads what is still buffered
        raise typer.Exit(READER_GONE) from None
    except Exception as error:
        if os.environ.get(TRACE) == "1":
            traceback.print_exception(error)
        code, sentence = _sentence(error)
        say(f"error: {sentence}")
        raise typer.Exit(code) from None


def say(message: str) -> None:
    """Print a line to standard error, if anybody reads that."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(message), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text with control characters, which could act on a terminal, spelled out; line ends stay."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def _sentence(error: Exception) -> tuple[int, str]:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return FAILED, f"{where}{error.strerror}"
    full = getattr(error.__context__ or error.__cause__, "strerror", None)
    what = " ".join(str(error).split())[:500]
    if full:  # some libraries wrap the system's error in one of their own
        return FAILED, f"{what} ({full})"
    if "No space left on device" in what or "os error 28" in what:
        return FAILED, what
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return FAILED, f"there is not enough memory ({what or 'MemoryError'})"
    name = type(error).__name__
    found = f"{name}: {what}" if what else name
    return FAULT, f"{found}. This is an internal error of anyo; {TRACE}=1 shows the traceback"


class BorderedGroup(TyperGroup):
    """A program of several commands whose errors are sentences."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with border():
            return super().invoke(ctx)


class BorderedCommand(TyperCommand):
    """A program of one command whose errors are sentences."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with border():
            return super().invoke(ctx)
