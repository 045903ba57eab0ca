"""A server under measurement as a tree of processes: started, watched as a whole, ended to the last of them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

GRACE_S = 15.0
LOG_END = 2000


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this program as Ctrl-C does, so that what it has started is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class ProcessTree:
    """A program and everything it starts. Use it as a context: leaving ends all of it, by its process ids."""

    def __init__(self, command: Sequence[str], *, cwd: Path, variables: Mapping[str, str], pipes: bool = False) -> None:
        self._log = tempfile.TemporaryFile(prefix="anyo-log-")  # noqa: SIM115 - closed by `end`
        pipe = subprocess.PIPE if pipes else None
        self.process = subprocess.Popen(
            list(command),
            cwd=cwd,
            env={**os.environ, **variables},
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or self._log,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._root = psutil.Process(self.process.pid)

    def __enter__(self) -> ProcessTree:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def log(self) -> str:
        """Return the end of what it wrote."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_END))
        return self._log.read().decode(errors="replace")

    def running(self) -> bool:
        """Return whether the program itself still runs."""
        return self.process.poll() is None

    def cpu_s(self) -> float:
        """Return the processor time of all its processes, of those that ended and were waited for too."""
        total = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory_mib(self) -> dict[str, float]:
        """Return the resident memory of all its processes, shared pages counted in each (rss) and divided (pss)."""
        found = {"rss": 0, "pss": 0}
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                info = process.memory_full_info()
                found["rss"] += info.rss
                found["pss"] += info.pss
        return {name: round(size / 2**20, 1) for name, size in found.items()}

    def end(self) -> None:
        """Ask the program to end, and end whatever of its tree is left after a while."""
        tree = list(self._processes())
        if self.running():
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        # A process that was started in the meantime is in the session of the program, if it made none of its own.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()  # psutil looks whether it is still the process that it was
        psutil.wait_procs(tree, timeout=GRACE_S)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def _processes(self) -> Iterator[psutil.Process]:
        with contextlib.suppress(psutil.Error):
            yield self._root
            yield from self._root.children(recursive=True)


def wait_until(ready: Iterator[bool], tree: ProcessTree, what: str, seconds: float) -> None:
    """Wait until `ready` yields True; raises SystemExit with the log if the program ends or takes too long."""
    deadline = time.monotonic() + seconds
    for answer in ready:
        if answer:
            return
        if not tree.running() or time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start within {seconds:.0f} s: {tree.log()}")
        time.sleep(0.25)
