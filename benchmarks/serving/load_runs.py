"""One visit to a running server: load on it, and what the load and its processes say."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.lib.load import Load, Pool, closed_loop, milliseconds, open_loop, percentile
from benchmarks.serving.contenders import PATIENCE_S, Running

SHORTEST, LONGEST = 15, 25  # items of a history
IDLE_S = 2.0
PERCENTILES = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}


def histories(items: Sequence[str], seed: str) -> Iterator[list[str]]:
    """Yield histories of about twenty different items; the same for the same seed, and never one twice (by chance)."""
    rng = random.Random(seed)
    while True:
        yield rng.sample(items, rng.randint(SHORTEST, LONGEST))


def figures(load: Load, cpu_s: float) -> dict[str, Any]:
    """Return what a load came to. `load.seconds` reaches to the last answer, so work and time are of one span."""
    answered = load.latencies(200)
    span = max((answer.due + answer.seconds for answer in load.answers), default=0.0)
    return {
        "requests": len(load.answers),
        "statuses": load.statuses(),
        "per_s": len(answered) / span if span else 0.0,
        **{name: milliseconds(percentile(answered, share)) for name, share in PERCENTILES.items()},
        "cpu_ms": 1000 * cpu_s / max(1, len(load.answers)),
        "server_cores": cpu_s / span if span else 0.0,
        "generator_cores": load.generator_cpu_s / load.seconds if load.seconds else 0.0,
    }


async def warm_up(running: Running, items: Sequence[str], seconds: float) -> None:
    """Let sixteen clients ask for a while: threads, batches and caches of the libraries find their form."""
    pool = Pool(running.url)
    asked = running.contender.requests(running.url, histories(items, "warm-up"))
    try:
        await closed_loop(pool, asked, clients=16, seconds=seconds, patience_s=PATIENCE_S)
    finally:
        pool.close()


async def closed(running: Running, items: Sequence[str], seed: str, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that ask again as soon as they are answered."""
    pool = Pool(running.url)
    asked = running.contender.requests(running.url, histories(items, seed))
    before = running.tree.cpu_s()
    try:
        load = await closed_loop(pool, asked, clients=clients, seconds=seconds, patience_s=PATIENCE_S)
        return figures(load, running.tree.cpu_s() - before)
    finally:
        pool.close()


async def offered(running: Running, items: Sequence[str], seed: str, rate: float, seconds: float) -> dict[str, Any]:
    """Requests at the times of a Poisson process, latency from the time at which each was due."""
    pool = Pool(running.url)
    asked = running.contender.requests(running.url, histories(items, seed))
    before = running.tree.cpu_s()
    try:
        rng = random.Random(f"{seed} arrivals")
        load = await open_loop(pool, asked, rate=rate, seconds=seconds, rng=rng, patience_s=PATIENCE_S)
        late = percentile(sorted(answer.late for answer in load.answers), 0.99)
        row = figures(load, running.tree.cpu_s() - before)
        return {"offered_per_s": rate, **row, "generator_late_p99_ms": milliseconds(late)}
    finally:
        pool.close()


async def idle(running: Running) -> float:
    """Return the cores that it takes while nobody asks."""
    before = running.tree.cpu_s()
    await asyncio.sleep(IDLE_S)
    return (running.tree.cpu_s() - before) / IDLE_S
