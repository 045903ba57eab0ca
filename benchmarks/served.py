"""Services as processes for the benchmarks: on a real artifact, or on the parts in memory that the tests use."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def services(number: int, artifact: Path | None, folder: Path, **settings: Any) -> Iterator[list[Service]]:
    """Start `number` services together, with these settings; yields them when all are ready."""
    started = [Service(artifact, folder, settings) for _ in range(number)]
    try:
        for service in started:
            service.wait_ready()
        yield started
    finally:
        for service in started:
            if service.process.poll() is None:
                service.process.kill()
            service.process.wait(30)


class Service:
    """One service process; its log goes to a file in `folder`."""

    def __init__(self, artifact: Path | None, folder: Path, settings: dict[str, Any]) -> None:
        if artifact is None:
            given = [f"{name}={value}" for name, value in settings.items() if name != "store"]
            store = settings["store"]
            command = [sys.executable, "-m", "tests.service.fake_server", "0", store, str(folder / "hold"), *given]
            more: dict[str, str] = {}
        else:
            command = [sys.executable, "-m", "service", str(artifact), "--port", "0", "--json"]
            more = {f"ANYO_{name.upper()}": str(value) for name, value in settings.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
        self.url = ""
        with (folder / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def wait_ready(self) -> None:
        """Read the address that the service says once it is ready; raises RuntimeError if it ends instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a service did not start; its log is in the folder of this run")
        self.url = json.loads(line)["url"]
