"""A real redis-server for tests and benchmarks: on a free port of 127.0.0.1, with its files in a folder of
its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE_S = 20.0


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """Starts with `start`; the same port and folder serve again after `kill` or `stop`."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError("redis-server")
        command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / "log.txt").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while self.tell("PING") != "+PONG":
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"redis-server did not start: {(self.folder / 'log.txt').read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def tell(self, *words: str) -> str:
        """Send one command and return the first line of the reply, or "" if there is none."""
        parts = [f"*{len(words)}", *(line for word in words for line in (f"${len(word.encode())}", word))]
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as link,
        ):
            link.sendall(("\r\n".join(parts) + "\r\n").encode())
            return link.recv(65_536).decode(errors="replace").split("\r\n")[0]
        return ""

    def signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, as a machine's memory killer would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE_S)

    def fill(self, megabytes: int) -> None:
        """Set the memory limit so low that no write is accepted (`megabytes` above nothing)."""
        assert self.tell("CONFIG", "SET", "maxmemory-policy", "noeviction") == "+OK"
        assert self.tell("CONFIG", "SET", "maxmemory", f"{megabytes}mb") == "+OK"


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server; skips the test where redis-server is not installed."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (Debian and Ubuntu: apt-get install redis-server)")
    server = RedisServer(folder, *options)
    try:
        yield server.start()
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.signal(signal.SIGCONT)
        server.kill()
