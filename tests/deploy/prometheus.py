"""A real Prometheus for tests, run from the files in deploy/prometheus.

What differs from the shipped files is only where it listens, whom it scrapes, and the pace: `faster` divides
every duration (scrape interval, `for`, the windows in expressions) by one factor, so that what takes five
minutes takes two seconds and everything keeps its proportion; only scrapes and evaluations stop at twice a
second, so that a busy machine does not miss them.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = ROOT / "deploy" / "prometheus"
MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
DURATION = re.compile(r"(\d+)(ms|[smhd])")
IN_EXPRESSION = re.compile(r"(?<=\[)\d+(?:ms|[smhd])(?=\])|(?<=offset )\d+(?:ms|[smhd])")
SHORTEST_INTERVAL_MS = 500
PATIENCE_S = 60.0


def program(name: str, package: str = "prometheus") -> str:
    """The path of a program of a Debian package; skips where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no program {name}; the Debian package {package} has it")
    return found


def shorter(duration: str, factor: float, least_ms: int = 1) -> str:
    number, unit = DURATION.fullmatch(duration).groups()  # type: ignore[union-attr]
    return f"{max(least_ms, round(int(number) * MILLISECONDS[unit] / factor))}ms"


def faster(tree: Any, factor: float) -> Any:
    """Divide every duration of a configuration or of rules by `factor`."""
    if isinstance(tree, list):
        return [faster(one, factor) for one in tree]
    if not isinstance(tree, dict):
        return tree
    changed = {}
    for key, value in tree.items():
        if key == "for":
            changed[key] = shorter(value, factor)
        elif key.endswith(("_interval", "_timeout")):
            changed[key] = shorter(value, factor, SHORTEST_INTERVAL_MS)
        elif key == "expr":
            changed[key] = IN_EXPRESSION.sub(lambda found: shorter(found.group(), factor), value)
        else:
            changed[key] = faster(value, factor)
    return changed


@dataclass
class Prometheus:
    """A running Prometheus, asked over its HTTP API."""

    client: httpx.Client

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API; raises where the question is wrong."""
        answer = self.client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query; raises where the expression is wrong."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def firing(self) -> set[tuple[str, str]]:
        """(job, alert) of every alert that fires."""
        labels = [alert["labels"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"]
        return {(each["job"], each["alertname"]) for each in labels}


def free_address() -> str:
    """127.0.0.1 with a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def wait_for(what: Callable[[], bool], otherwise: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Wait until `what` holds, or fail with what `otherwise` says."""
    end = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end, otherwise()
        time.sleep(0.2)


@contextlib.contextmanager
def prometheus(
    folder: Path, static: dict[str, list[dict[str, Any]]], factor: float, alertmanager: str | None = None
) -> Iterator[Prometheus]:
    """Run the shipped configuration, `factor` times as fast; `static` are the targets of each job to scrape.

    Alerts go to the Alertmanager at the address (host:port), to none without one.
    """
    binary = program("prometheus")
    config = faster(yaml.safe_load((SHIPPED / "prometheus.yml").read_text()), factor)
    ours = next(job for job in config["scrape_configs"] if job["job_name"] == "anyo")
    del ours["dns_sd_configs"]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager] if alertmanager else []
    config["scrape_configs"] = [
        {**ours, "job_name": name, "static_configs": targets} for name, targets in static.items()
    ]
    (folder / "rules").mkdir()
    for path in (SHIPPED / "rules").glob("*.yml"):
        (folder / "rules" / path.name).write_text(yaml.safe_dump(faster(yaml.safe_load(path.read_text()), factor)))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = free_address()
    command = [
        binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}", "--log.level=warn", "--web.max-connections=32",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as client:
                wait_for(lambda: _ready(process, client), (folder / "log").read_text)
                yield Prometheus(client)
        finally:
            process.terminate()
            process.wait(30)


def _ready(process: subprocess.Popen[bytes], client: httpx.Client) -> bool:
    if process.poll() is not None:
        return False
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
