"""Appends JSON lines to a file that others rotate and whose disk may be full: whole lines or none, and an honest count.

A line that was cut off (a full disk, a crash) is taken back where this process wrote it, and ended with a line break
where it did not: two records never share a line. A file that was renamed or deleted, as log rotation does, is opened
anew under its name.
"""

from __future__ import annotations

import os
import queue
import threading
from pathlib import Path
from typing import Any

import orjson
import structlog

from service.errors import StartError
from service.observability.metrics import Metrics

log = structlog.get_logger(__name__)

LOG_BACKLOG = 10_000  # lines that may wait for the disk


class LineFile:
    """Appends JSON lines from a thread of its own; what the disk cannot keep up with is dropped and counted."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue(LOG_BACKLOG)
        self._thread = threading.Thread(target=self._run, name="anyo-feedback-log", daemon=True)
        self._lines = WholeLines(path)

    def open(self) -> None:
        """Open the file for appending; raises StartError."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._lines.open()
        except OSError as error:
            raise StartError(f"ANYO_FEEDBACK_LOG {self._path} cannot be written: {error.strerror}") from error
        self._thread.start()

    def write(self, line: dict[str, Any]) -> None:
        """Queue a line. Never blocks."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self._metrics.feedback_log_lines("dropped").inc()

    def close(self) -> None:
        """Write what waits, then close."""
        if not self._thread.is_alive():
            return
        self._waiting.put(None)
        self._thread.join(10)
        self._lines.close()

    def _run(self) -> None:
        while (line := self._waiting.get()) is not None:
            lines = [line]
            ended = False
            while not self._waiting.empty():
                if (more := self._waiting.get()) is None:
                    ended = True
                    break
                lines.append(more)
            written = self._lines.append([orjson.dumps(each) + b"\n" for each in lines])
            self._metrics.feedback_log_lines("written").inc(written)
            self._metrics.feedback_log_lines("dropped").inc(len(lines) - written)
            if ended:
                return


class WholeLines:
    """A file that ends with a whole line after every call."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._torn = False  # whether the file ends within a line

    def open(self) -> None:
        """Open or make the file; raises OSError."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._descriptor = descriptor
        end = os.fstat(descriptor).st_size
        # A pipe or a device has no size and no end.
        self._torn = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"

    def append(self, lines: list[bytes]) -> int:
        """Append lines, each with its line break, and return how many of them are in the file now."""
        try:
            descriptor = self._current()
        except OSError as error:
            log.error("feedback log cannot be opened", error=repr(error))
            return 0
        content = b"".join(lines)
        if self._torn:
            content = b"\n" + content
        before = os.fstat(descriptor).st_size
        written = _write(descriptor, content)
        if written == len(content):
            self._torn = False
            return len(lines)
        return self._whole_of(descriptor, lines, before, written)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _current(self) -> int:
        """Return the descriptor of the file that has the name now; raises OSError."""
        if self._descriptor is not None:
            own = os.fstat(self._descriptor)
            try:
                named = os.stat(self._path)
            except FileNotFoundError:
                named = None
            if named is not None and (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino):
                return self._descriptor
            self.close()
        self.open()
        assert self._descriptor is not None
        return self._descriptor

    def _whole_of(self, descriptor: int, lines: list[bytes], before: int, written: int) -> int:
        """Take back the line that was cut off; return how many whole ones there are."""
        whole, length = 0, int(self._torn)
        while whole < len(lines) and length + len(lines[whole]) <= written:
            length += len(lines[whole])
            whole += 1
        keep = length if whole else 0
        if keep == written:
            self._torn = self._torn and not whole
            return whole
        try:
            # Not where somebody else has appended behind it meanwhile.
            if os.fstat(descriptor).st_size == before + written:
                os.ftruncate(descriptor, before + keep)
                self._torn = self._torn and not whole
                return whole
        except OSError as error:
            log.error("feedback log cannot be shortened", error=repr(error))
        self._torn = True
        return whole


def _write(descriptor: int, content: bytes) -> int:
    """Return how many bytes of `content` were written: a disk that fills up takes a part, then none."""
    written = 0
    try:
        while written < len(content):
            written += os.write(descriptor, content[written:])
    except OSError as error:
        log.error("feedback log cannot be written", error=repr(error))
    return written
