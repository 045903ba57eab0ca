"""A real service process for the programs that measure one: started, asked, watched, ended."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import request

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 180.0


class Server:
    """`python -m service ARTIFACT` on a free port, its store and log in a folder of its own."""

    def __init__(self, artifact: Path, settings: Mapping[str, Any] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._log = (Path(self._folder.name) / "log").open("wb")
        environment = {f"ANYO_{name.upper()}": str(value) for name, value in (settings or {}).items()}
        store = f"sqlite:///{self._folder.name}/histories.sqlite"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", str(artifact.absolute()), "--port", "0", "--store", store, "--json"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={"ANYO_LOG_LEVEL": "warning", **os.environ, **environment},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the service did not start: {self.log()}")
        self.url: str = json.loads(line)["url"]

    def log(self) -> str:
        """Return what it logged."""
        return (Path(self._folder.name) / "log").read_text()

    def resident_kib(self) -> int:
        """Return its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)
        assert found is not None
        return int(found.group(1))

    def cpu_s(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def get(self, path: str) -> Any:
        """Return the JSON of a GET."""
        return httpx.get(self.url + path, timeout=PATIENCE_S).json()

    def post(self, path: str) -> httpx.Response:
        """Return the answer to a POST without a body."""
        return httpx.post(self.url + path, timeout=PATIENCE_S)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE_S)
        self._log.close()
        return self.process.returncode

    def forget(self) -> None:
        """Remove its folder."""
        self._folder.cleanup()


def recommendations(server: Server, rng: random.Random, *, lengths: tuple[int, int] = (1, 30)) -> Iterator[bytes]:
    """Yield requests for histories of the artifact's items that do not repeat, so that no cache answers them."""
    found = server.get("/items?limit=200")["items"]
    ids = [item["item_id"] for item in found]
    host = server.url.removeprefix("http://")
    for _ in itertools.count():
        history = rng.choices(ids, k=rng.randint(*lengths))
        yield request(host, "/recommend", json.dumps({"history": history, "k": 10}).encode())
