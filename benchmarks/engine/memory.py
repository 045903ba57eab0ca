"""Memory of the service under a quarter of an hour of mixed load, and what it consists of.

    python -m benchmarks.engine.memory ARTIFACT [--minutes 15] [--clients 4] [--setting reuse_mib=64]

The load: histories that never repeat and some that do, known users, events, free titles, answers of different lengths,
and requests that are refused. Resident memory is read every second. Two statements are checked: at the end it is within
2 % of what it was after the first minute; and what an idle service holds is the interpreter with its libraries, what of
their code has run since, and what `GET /artifacts` says of the artifact, whose language model is kept without its head.
Seconds from the start of the process to its readiness are stated too. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.lib.load import Load, Pool, closed_loop, milliseconds, percentile, request
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import ROOT, Server

MIB = 2**20
USERS, REPEATED, LIMIT = 2000, 50, 1.02
FIRST_S = 60.0
# What a service process has read before its artifact: the same modules, and nothing made with them.
LIBRARIES = (
    "import service.service, service.http.app, service.http.server, modeling.methods.dense, "
    "modeling.methods.trie, index, faiss, polars, torch, transformers; "
    "from transformers import Qwen3Model, AutoModel; "
    "from benchmarks.engine.memory import print_own; print_own()"
)

RESULT = ResultFile(__file__, __doc__)


def resident(pid: int | str) -> dict[str, int]:
    """Return the resident KiB of a process: in all, and those of code, which are files that it has mapped and runs."""
    found, is_code = {"all": 0, "code": 0}, False
    maps = Path(f"/proc/{pid}/smaps")
    if not maps.exists():
        raise SystemExit(f"memory is read from {maps}, which Linux alone has")
    for line in maps.read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):  # a range of addresses begins, and ends with the file behind it
            is_code = len(rest) > 4 and rest[4].startswith("/") and not rest[4].endswith(".safetensors")
        elif first == "Rss:":
            found["all"] += int(rest[0])
            found["code"] += is_code * int(rest[0])
    return found


def print_own() -> None:
    """Print that of this process."""
    print(json.dumps(resident("self")))


def mixed(server: Server, reads_text: bool, rng: random.Random) -> Iterator[bytes]:
    """Requests of all kinds."""
    ids = [item["item_id"] for item in server.get("/items?limit=200")["items"]]
    host = server.url.removeprefix("http://")
    often = [rng.choices(ids, k=rng.randint(3, 25)) for _ in range(REPEATED)]
    number = 0

    def ask(**body: Any) -> bytes:
        return request(host, "/recommend", json.dumps({"k": rng.choice((5, 10, 20, 100)), **body}).encode())

    while True:
        number += 1
        kind, user = rng.random(), f"u{rng.randrange(USERS)}"
        history: list[Any] = rng.choices(ids, k=rng.randint(1, 30))
        if kind < 0.4:
            yield ask(history=history)
        elif kind < 0.55:
            yield ask(user_id=user)
        elif kind < 0.75:
            event = {"item_id": rng.choice(ids), "event_id": f"e{number}"}
            yield request(host, f"/users/{user}/events", json.dumps({"events": [event]}).encode())
        elif kind < 0.85:
            yield ask(history=rng.choice(often))
        elif kind < 0.95 and reads_text:
            yield ask(history=[*history[:5], {"title": f"a title that is number {number}"}])
        else:
            yield ask(history=rng.choice(([], ["no such item"], [7])))


async def loaded(server: Server, requests: Iterator[bytes], minutes: float, clients: int) -> tuple[Load, list[int]]:
    """Outcome of the load, and resident KiB at every second."""
    samples: list[int] = []
    pool = Pool(server.url)
    load = asyncio.ensure_future(closed_loop(pool, requests, clients=clients, seconds=60 * minutes))
    try:
        while not load.done():
            samples.append(server.resident_kib())
            await asyncio.sleep(1)
        return await load, samples
    finally:
        pool.close()


def main() -> None:
    """Start, load, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--setting", action="append", default=[], help="NAME=VALUE of the service")
    RESULT.add_option(parser)
    options = parser.parse_args()
    made = subprocess.run([sys.executable, "-c", LIBRARIES], cwd=ROOT, capture_output=True, text=True, check=True)
    libraries = json.loads(made.stdout)
    started = time.perf_counter()
    with Server(options.artifact, dict(setting.split("=", 1) for setting in options.setting)) as server:
        server.wait_ready()
        ready = time.perf_counter() - started
        time.sleep(2)
        idle = resident(server.process.pid)
        (row,) = server.get("/artifacts")["items"]
        requests = mixed(server, "text" in row["reads"], random.Random(0))
        load, samples = asyncio.run(loaded(server, requests, options.minutes, options.clients))
    first = samples[min(int(FIRST_S), len(samples) // 2)]
    seconds, stated, ran = load.latencies(200), row["bytes"] / MIB, (idle["code"] - libraries["code"]) / 1024
    result = {
        "ready_s": round(ready, 2),
        "minutes": options.minutes,
        "requests": len(load.answers),
        "statuses": load.statuses(),
        "p99_ms": milliseconds(percentile(seconds, 0.99)),
        "mib": {
            "interpreter_and_libraries": libraries["all"] / 1024,
            "artifact_as_stated": stated,
            "code_run_since": ran,
            "idle": idle["all"] / 1024,
            "idle_not_explained": (idle["all"] - libraries["all"]) / 1024 - stated - ran,
            "after_the_first_minute": first / 1024,
            "end": samples[-1] / 1024,
            "largest": max(samples) / 1024,
        },
        "mib_by_minute": [round(sample / 1024, 1) for sample in samples[:: int(FIRST_S)]],
        "end_over_first_minute": samples[-1] / first,
        "within_limit": samples[-1] <= LIMIT * first,
    }
    for name, value in result["mib"].items():
        print(f"{name:28s} {value:9.1f} MiB")
    RESULT.publish(result, options.result)


if __name__ == "__main__":
    main()
