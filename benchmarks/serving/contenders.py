"""Services of a comparison: our service, and peers in environments of their own, each started on a free port."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.load import request
from benchmarks.lib.process_tree import ProcessTree, free_port, wait_until
from modeling.cores import affinity_cores

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = Path(os.environ.get("PEERS", ROOT / ".peers"))
PEERS = ("fastapi", "litserve", "bentoml", "ray", "infinity")
VARIANTS = ("documented", "tuned")
K = 10
START_S, PATIENCE_S = 240.0, 120.0
# Nothing is remembered, and nothing refused: the peers refuse nothing either, and then wait as long as it takes.
OURS = {
    "user_cache_entries": "0",
    "max_queue_seconds": "0",
    "max_loop_delay_ms": "0",
    "deadline_ms": str(int(1000 * PATIENCE_S)),
    "log_level": "warning",
    "store": "sqlite:///:memory:",
}


@dataclass(frozen=True)
class Contender:
    """A server: how it is started on a port, and how it is asked. `compared`: its model is the same as the others'."""

    name: str
    command: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    in_list: bool = False
    compared: bool = True

    def body(self, history: Sequence[str]) -> bytes:
        """Return the body of a request."""
        ask = {"history": list(history), "k": K}
        return json.dumps({"asks": [ask]} if self.in_list else ask).encode()

    def requests(self, url: str, histories: Iterator[Sequence[str]]) -> Iterator[bytes]:
        """Yield requests as they go over the wire."""
        host = url.removeprefix("http://")
        return (request(host, "/recommend", self.body(history)) for history in histories)

    def start(self) -> Running:
        """Start it; ready when it answers `wait_ready`."""
        port = free_port()
        variables = {name: value.replace("{port}", str(port)) for name, value in self.variables.items()}
        command = [part.replace("{port}", str(port)) for part in self.command]
        return Running(self, ProcessTree(command, cwd=ROOT, variables=variables), f"http://127.0.0.1:{port}")


@dataclass(frozen=True)
class Running:
    """A contender that has been started."""

    contender: Contender
    tree: ProcessTree
    url: str

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.tree.end()

    def wait_ready(self, history: Sequence[str]) -> None:
        """Wait until it answers; raises SystemExit with what it wrote."""
        wait_until(self._answers(history), self.tree, self.contender.name, START_S)

    def ask(self, history: Sequence[str]) -> Any:
        """Return the JSON of one answer; raises httpx.HTTPError."""
        headers = {"content-type": "application/json"}
        answer = httpx.post(
            self.url + "/recommend", content=self.contender.body(history), headers=headers, timeout=PATIENCE_S
        )
        answer.raise_for_status()
        return answer.json()

    def _answers(self, history: Sequence[str]) -> Iterator[bool]:
        for _ in itertools.count():
            try:
                self.ask(history)
            except (httpx.HTTPError, ValueError):
                yield False
            else:
                yield True


def ours(artifact: Path, precision: str, settings: Mapping[str, str], name: str = "anyo") -> Contender:
    """Our service around an artifact."""
    given = {**OURS, "precision": precision, **settings}
    return Contender(
        name,
        [sys.executable, "-m", "service", str(artifact.absolute()), "--port", "{port}", "--json"],
        {f"ANYO_{key.upper()}": str(value) for key, value in given.items()},
    )


def peer(name: str, variant: str, folder: Path, precision: str) -> Contender:
    """A peer around an exported artifact; raises SystemExit where its environment is missing."""
    python = ENVIRONMENTS / name / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{name} has no environment: `make peers` builds it, `--without {name}` goes on without it")
    program = f"benchmarks.serving.peers.{name}_app"
    command = [str(python), "-m", program]
    if name == "bentoml":
        command = [str(python), "-m", "bentoml", "serve", f"{program}:Recommender"]
        command += ["--host", "127.0.0.1", "--port", "{port}"]
    variables = {
        "PEER_MODEL": str(folder.absolute()),
        "PEER_VARIANT": variant,
        "PEER_PRECISION": precision,
        "PEER_PORT": "{port}",
        "PEER_LANES": str(affinity_cores()),
        # Nobody is called from a benchmark.
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "BENTOML_DO_NOT_TRACK": "true",
        "DO_NOT_TRACK": "1",
    }
    return Contender(f"{name} {variant}", command, variables, in_list=name == "bentoml")
