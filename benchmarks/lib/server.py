"""A real service process for the programs that measure one: started, asked, watched, ended."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.lib.load import request

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 180.0


class Server:
    """`python -m service ARTIFACT` (or another program that takes the same) on a free port, with `others` beside the
    artifact, its store and log in a folder of its own.

    Without an artifact it is the real service around parts made in memory, a fake model among them. Starting does not
    wait: `wait_ready`, or the first look at `url`, does.
    """

    def __init__(
        self,
        artifact: Path | None,
        settings: Mapping[str, Any] | None = None,
        *,
        others: Sequence[Path] = (),
        program: str = "service",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="anyo-server-")
        folder = Path(self._folder.name)
        given = {"store": f"sqlite:///{folder}/histories.sqlite", "log_level": "warning", **(settings or {})}
        if artifact is None:
            store = str(given.pop("store"))
            pairs = [f"{name}={value}" for name, value in given.items()]
            command, variables = ["-m", "testing.fake_server", "0", store, str(folder / "hold"), *pairs], {}
        else:
            folders = [str(each.absolute()) for each in (artifact, *others)]
            command = ["-m", program, *folders, "--port", "0", "--json"]
            variables = {f"ANYO_{name.upper()}": str(value) for name, value in given.items()}
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        self._url = self.admin_key = ""

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
        self._folder.cleanup()

    def wait_ready(self) -> None:
        """Read the address, which it prints once it is ready; raises SystemExit with its log if it ends instead."""
        assert self.process.stdout is not None
        if not self._url:
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"the service did not start: {self.log()}")
            said = json.loads(line)
            self._url, self.admin_key = str(said["url"]), said["admin_key"] or ""

    @property
    def url(self) -> str:
        """Its address, once it is ready."""
        self.wait_ready()
        return self._url

    def log(self) -> str:
        """Return what it logged."""
        return (Path(self._folder.name) / "log").read_text()

    def resident_kib(self) -> int:
        """Return its resident memory."""
        return int(psutil.Process(self.process.pid).memory_info().rss) // 1024

    def cpu_s(self) -> float:
        """Return the processor time it has used."""
        used = psutil.Process(self.process.pid).cpu_times()
        return float(used.user + used.system)

    def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        return httpx.get(self.url + path, timeout=PATIENCE_S).json()

    def post(self, path: str) -> httpx.Response:
        """Return the answer to a POST without a body, sent as whoever started the server."""
        self.wait_ready()
        headers = {"content-type": "application/json", "x-api-key": self.admin_key}
        return httpx.post(self.url + path, headers=headers, timeout=PATIENCE_S)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it, if it still runs, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.communicate(timeout=PATIENCE_S)
        self._log.close()
        return self.process.returncode


@contextlib.contextmanager
def servers(number: int, artifact: Path | None, settings: Mapping[str, Any]) -> Iterator[list[Server]]:
    """Start several together, with the same settings; yields them when all are ready."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(Server(artifact, settings)) for _ in range(number)]
        for server in started:
            server.wait_ready()
        yield started


def recommendations(server: Server, rng: random.Random, *, lengths: tuple[int, int] = (1, 30)) -> Iterator[bytes]:
    """Yield requests for histories of the artifact's items that do not repeat, so that no cache answers them."""
    found = server.get("/items?limit=200")["items"]
    ids = [item["item_id"] for item in found]
    host = server.url.removeprefix("http://")
    for _ in itertools.count():
        history = rng.choices(ids, k=rng.randint(*lengths))
        yield request(host, "/recommend", json.dumps({"history": history, "k": 10}).encode())
