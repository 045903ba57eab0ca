"""The service on Ray Serve beside one process: answers, cost, deaths of replicas, and an update under load.

    python -m benchmarks.serving.ray_app ARTIFACT [--other ARTIFACT] [--requests 500] [--seconds 15]

One process answers histories of 3 to 12 items, then the service on Ray Serve answers the same ones: items must be
equal, and scores but for rounding. Each is also asked by one client and by several, for latency, throughput and
processor time. Then a replica that encodes and one of a shard are killed with SIGKILL under load, and with `--other`,
an artifact of the same catalog takes the place of the first under load. Every answer is compared. Caches of user
vectors are off. The last line is one JSON object; the exit status is 1 where an answer differs or a request fails.
Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.lib.load import Pool, closed_loop, milliseconds, percentile, request
from benchmarks.lib.process_tree import ProcessTree, end_on_sigterm, free_port, wait_until
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import ROOT
from benchmarks.lib.state import State
from index import Catalog

K = 20
PART = 100
"""Answers that are compared at a time."""
ADDRESS_S = 30.0  # after the first answer, until the command has printed it
START_S = 300.0
TOLERANCE = 1e-5
"""Of scores, relative: shards and batches of other sizes sum in another order."""
Answers = list[list[dict[str, Any]]]

RESULT = ResultFile(__file__, __doc__)


def histories(artifact: Path, count: int) -> list[dict[str, Any]]:
    """Return bodies of requests; every third excludes items."""
    ids = Catalog.read(artifact / "catalog.parquet").item_ids
    return [
        {
            "history": [ids[(31 * number + 7 * place) % len(ids)] for place in range(3 + number % 10)],
            "exclude": [ids[(17 * number + place) % len(ids)] for place in range(5 if number % 3 == 0 else 0)],
            "k": K,
        }
        for number in range(count)
    ]


class Program:
    """One of the two services, in a tree of processes."""

    def __init__(self, module: str, artifact: Path, folder: str, options: Sequence[str] = ()) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        variables = {"ANYO_USER_CACHE_ENTRIES": "0", "ANYO_STORE": f"sqlite:///{folder}/{port}.sqlite"}
        command = [sys.executable, "-m", module, str(artifact.absolute()), "--port", str(port), *options]
        self.tree = ProcessTree(command, cwd=ROOT, variables={**variables, "ANYO_LOG_LEVEL": "warning"})

    def __enter__(self) -> Program:
        try:
            wait_until(self._ready(), self.tree, "the service", START_S)
        except BaseException:
            self.tree.end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.tree.end()

    def _ready(self) -> Iterator[bool]:
        with httpx.Client(base_url=self.url, timeout=10.0) as client:
            while True:
                try:
                    yield client.get("/readyz").status_code == 200
                except httpx.HTTPError:
                    yield False

    def cluster(self) -> str:
        """Return the address of the cluster of Ray, which it prints."""
        end = time.monotonic() + ADDRESS_S
        while (found := re.search(r"--address (\S+)", self.tree.log())) is None:
            if time.monotonic() > end:
                raise SystemExit(f"no address of a cluster: {self.tree.log()}")
            time.sleep(0.1)
        return found[1]

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """Return the processes of the replicas of a deployment."""
        children = psutil.Process(self.tree.process.pid).children(recursive=True)
        return [each for each in children if _is_replica(each, deployment)]

    def replica(self, deployment: str) -> psutil.Process:
        """Return the process of a replica of a deployment."""
        if found := self.replicas(deployment):
            return found[0]
        raise SystemExit(f"no process of a replica of {deployment} is found")


def _is_replica(process: psutil.Process, deployment: str) -> bool:
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:  # it has ended since it was listed
        return False
    return "ServeReplica" in line and f":{deployment}" in line


async def answers(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> Answers:
    """Return the items of all answers; so many are asked for at the same time."""
    free = asyncio.Semaphore(clients)

    async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> list[dict[str, Any]]:
        async with free:
            answer = await client.post("/recommend", json=body)
        found: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
        return found

    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        return await asyncio.gather(*(ask(client, body) for body in bodies))


async def differences(url: str, bodies: Sequence[dict[str, Any]], expected: Answers, clients: int) -> int:
    """Return how many answers are not the expected ones."""
    found = await answers(url, bodies, clients)
    return sum(not same(one, each) for one, each in zip(found, expected, strict=True))


def same(found: Any, expected: list[dict[str, Any]]) -> bool:
    """Whether items and their order are equal, and scores but for rounding."""
    if not isinstance(found, list) or [each["item_id"] for each in found] != [each["item_id"] for each in expected]:
        return False
    pairs = zip(found, expected, strict=True)
    return all(abs(a["score"] - b["score"]) <= TOLERANCE * max(1, abs(b["score"])) for a, b in pairs)


async def cost(program: Program, bodies: Sequence[dict[str, Any]], seconds: float, clients: int) -> dict[str, Any]:
    """Return latency with one client, throughput and processor time with several, and memory."""
    host = program.url.removeprefix("http://")
    sent = itertools.cycle([request(host, "/recommend", json.dumps(body).encode()) for body in bodies])
    pool = Pool(program.url)
    await closed_loop(pool, sent, clients=clients, seconds=2.0)
    alone = await closed_loop(pool, sent, clients=1, seconds=seconds)
    before = program.tree.cpu_s()
    together = await closed_loop(pool, sent, clients=clients, seconds=seconds)
    used = program.tree.cpu_s() - before
    pool.close()
    latencies, done = alone.latencies(200), len(together.latencies(200))
    return {
        "failed": sum(answer.status != 200 for answer in (*alone.answers, *together.answers)),
        "p50_ms": milliseconds(percentile(latencies, 0.5)),
        "p99_ms": milliseconds(percentile(latencies, 0.99)),
        "requests_per_second": round(done / together.seconds, 1),
        "cpu_ms": round(1000 * used / max(1, done), 2),
        "memory_mib": program.tree.memory_mib()["pss"],
    }


async def under_load(
    url: str,
    bodies: Sequence[dict[str, Any]],
    right: Callable[[int, Any], bool],
    clients: int,
    meanwhile: Callable[[], Awaitable[None]],
) -> dict[str, Any]:
    """Let clients ask until ``meanwhile`` is over, and return how many answers were not right."""
    over, took, wrong = asyncio.Event(), list[float](), list[str]()

    async def ask(client: httpx.AsyncClient, first: int) -> None:
        for number in itertools.count(first, clients):
            if over.is_set():
                return
            started, at = time.monotonic(), number % len(bodies)
            try:
                answer = await client.post("/recommend", json=bodies[at])
                found = answer.json()["items"] if answer.status_code == 200 else answer.text
            except httpx.HTTPError as error:
                found = repr(error)
            took.append(time.monotonic() - started)
            if not right(at, found):
                wrong.append(str(found)[:300])

    async with httpx.AsyncClient(base_url=url, timeout=60.0) as client:
        asking = [asyncio.create_task(ask(client, first)) for first in range(clients)]
        await meanwhile()
        over.set()
        await asyncio.gather(*asking)
    for text in wrong[:3]:
        print(f"wrong: {text}", file=sys.stderr)
    return {"requests": len(took), "failed": len(wrong), "longest_ms": milliseconds(max(took))}


async def deaths(
    program: Program, bodies: Sequence[dict[str, Any]], expected: Answers, seconds: float, clients: int
) -> dict[str, Any]:
    """Kill an encoder and a shard under load."""

    async def kill() -> None:
        for deployment in ("encoder", "shard-0"):
            await asyncio.sleep(seconds / 3)
            os.kill(program.replica(deployment).pid, signal.SIGKILL)
        await asyncio.sleep(seconds / 3)

    return await under_load(program.url, bodies, lambda at, found: same(found, expected[at]), clients, kill)


async def update(
    program: Program, other: Path, bodies: Sequence[dict[str, Any]], old: Answers, new: Answers, clients: int
) -> dict[str, Any]:
    """Let another artifact take the place of the first under load; afterwards only it may answer."""
    took = 0.0

    async def replace() -> None:
        nonlocal took
        started = time.monotonic()
        words = ("-m", "service.ray_serve", str(other.absolute()), "--address", program.cluster())
        variables = {**os.environ, "ANYO_PORT": program.url.rpartition(":")[2]}
        process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=ROOT, env=variables)
        if await process.wait():
            raise SystemExit("the update did not succeed")
        took = time.monotonic() - started

    def either(at: int, found: Any) -> bool:
        return same(found, old[at]) or same(found, new[at])

    during = await under_load(program.url, bodies, either, clients, replace)
    different = await differences(program.url, bodies[:PART], new[:PART], clients)
    return {**during, "compared": PART, "different": different, "update_s": round(took, 1)}


async def one_process(artifact: Path, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the answers of one process, and its figures."""
    bodies = histories(arguments.artifact, arguments.requests)
    with Program("service", artifact, folder) as single:
        found = await answers(single.url, bodies, arguments.clients)
        return {"answers": found, "figures": await cost(single, bodies, arguments.seconds, arguments.clients)}


async def run(arguments: argparse.Namespace, folder: str, state: State) -> dict[str, dict[str, Any]]:
    """Measure one process, then the service on Ray Serve."""
    bodies, seconds, clients = histories(arguments.artifact, arguments.requests), arguments.seconds, arguments.clients
    single = await state.part("single", lambda: one_process(arguments.artifact, folder, arguments))
    expected: Answers = single["answers"]
    other: Answers = []
    if arguments.other is not None:
        other = (await state.part("other", lambda: one_process(arguments.other, folder, arguments)))["answers"]
    started = time.monotonic()
    with Program("service.ray_serve", arguments.artifact, folder) as program:
        ready = round(time.monotonic() - started, 1)
        figures = {"one process": single["figures"]}
        figures["an encoder and a shard killed"] = await state.part(
            "deaths", lambda: deaths(program, bodies, expected, seconds, clients)
        )
        different = 0
        for first in range(0, len(bodies), PART):
            these, right = bodies[first : first + PART], expected[first : first + PART]
            compare = partial(differences, program.url, these, right, clients)
            different += await state.part(f"compared from {first}", compare)
        figures[f"Ray Serve {version('ray')}"] = {
            "compared": len(bodies), "different": different, "start_s": ready,
            **await state.part("cost", lambda: cost(program, bodies, seconds, clients)),
        }  # fmt: skip
        if arguments.other is not None:
            figures["another artifact"] = await state.part(
                "update", lambda: update(program, arguments.other, bodies, expected, other, clients)
            )
    return figures


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--other", type=Path, help="artifact of the same catalog that takes its place")
    parser.add_argument("--requests", type=int, default=500, help="histories that are compared")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--state", type=Path, help="file of parts that have ended: started again, it goes on")
    RESULT.add_option(parser)
    arguments = parser.parse_args()
    end_on_sigterm()
    with tempfile.TemporaryDirectory(prefix="anyo-ray-") as folder:
        figures = asyncio.run(run(arguments, folder, State(arguments.state)))
    RESULT.publish(figures, arguments.result)
    bad = sum(row.get("failed", 0) + row.get("different", 0) for row in figures.values())
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
