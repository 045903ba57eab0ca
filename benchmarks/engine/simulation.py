"""The service under load beside a simulation of the same arrivals: what queueing alone would cost.

    python -m benchmarks.engine.simulation ARTIFACT [--share 0.8] [--seconds 60] [--rounds 5]

The batching core (`service/engine/batcher.py`) runs on a virtual clock, in as many lanes as the service has, with the
cost of a batch as it was just measured on the model, and gets the very arrivals, lengths and order that the service
gets. What the service is slower by is everything around the model: HTTP, threads, the search. Capacity is the closed
loop's with 16 clients. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.lib.load import Pool, closed_loop, open_loop, percentile, request
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server
from index import Catalog
from service.artifacts.loading import LoadedArtifact, open_artifact
from service.engine.batcher import Limits
from service.engine.cpu import Shares, shares
from service.recommend.dense import ENOUGH_POSITIONS
from service.settings import Settings
from testing.simulation import Cost, Costs, simulate

SHORTEST, LONGEST, K = 15, 25, 10
SETTINGS = {
    "user_cache_entries": "0", "max_queue_seconds": "0", "max_loop_delay_ms": "0", "deadline_ms": "120000",
    "max_queued_tokens": "1000000",
}  # fmt: skip

RESULT = ResultFile(__file__, __doc__)


@dataclass(frozen=True)
class Asked:
    """One request: its history, and the positions it takes."""

    history: list[int]
    positions: int


def requests(parts: LoadedArtifact, seed: int) -> Iterator[Asked]:
    """Histories that do not repeat."""
    rng = random.Random(seed)
    while True:
        history = rng.sample(range(parts.index.size), rng.randint(SHORTEST, LONGEST))
        yield Asked(history, parts.encoder.prepare(history).length)


def measured_costs(parts: LoadedArtifact, asked: Iterator[Asked], cores: Shares, rounds: int) -> Costs:
    """As the service runs its passes: alone with all threads, and in all lanes at the same time."""
    seen: dict[bool, list[tuple[int, float]]] = {True: [], False: []}

    def passes(batches: Sequence[list[Asked]], alone: bool) -> None:
        torch.set_num_threads(cores.alone if alone else cores.threads)
        for batch in batches:
            prompts = [parts.encoder.prepare(each.history) for each in batch]
            started = time.perf_counter()
            parts.encoder.encode(prompts)
            seen[alone].append((sum(prompt.length for prompt in prompts), time.perf_counter() - started))

    def drawn() -> list[list[Asked]]:
        return [list(itertools.islice(asked, count)) for _ in range(rounds) for count in (1, 2, 1, 2)]

    passes(drawn(), True)
    lanes = [threading.Thread(target=passes, args=(drawn(), False)) for _ in range(cores.lanes)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    return Costs(*(_line(seen[alone]) for alone in (True, False)))


def _line(measured: Sequence[tuple[int, float]]) -> Cost:
    """Seconds of a batch as a line over its positions, least squares."""
    rows = np.asarray([(1.0, positions) for positions, _ in measured])
    found, *_ = np.linalg.lstsq(rows, np.asarray([seconds for _, seconds in measured]), rcond=None)
    return lambda positions: float(max(1e-6, found @ (1.0, positions)))


def arrivals_of(seed: int, rate: float, seconds: float, asked: Iterator[Asked]) -> list[tuple[float, int]]:
    """The due times that `open_loop` draws with this seed, and what is asked then."""
    rng, due, found = random.Random(seed), 0.0, []
    while (due := due + rng.expovariate(rate)) < seconds:
        found.append((due, next(asked).positions))
    return found


async def real(server: Server, wire: Iterator[bytes], rate: float, seconds: float, seed: int) -> list[float]:
    """Latencies of the service, ascending."""
    pool = Pool(server.url)
    try:
        load = await open_loop(pool, wire, rate=rate, seconds=seconds, rng=random.Random(seed), patience_s=120)
    finally:
        pool.close()
    if set(load.statuses()) != {"200"}:
        raise SystemExit(f"not every request was answered: {load.statuses()}")
    return load.latencies(200)


async def capacity_of(server: Server, wire: Iterator[bytes], seconds: float) -> tuple[float, float]:
    """Requests a second of 16 clients, and the latency of one alone."""
    pool = Pool(server.url)
    try:
        await closed_loop(pool, wire, clients=16, seconds=1.0)
        load = await closed_loop(pool, wire, clients=16, seconds=seconds)
        alone = await closed_loop(pool, wire, clients=1, seconds=seconds / 2)
    finally:
        pool.close()
    span = max(answer.due + answer.seconds for answer in load.answers)
    return len(load.latencies(200)) / span, statistics.median(alone.latencies(200))


def main() -> None:
    """Measure the curve, then the service and the simulation with the same arrivals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--share", type=float, default=0.8, help="of capacity that is offered")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=5)
    RESULT.add_option(parser)
    options = parser.parse_args()
    console, cores = Console(stderr=True), shares(0, 0)
    parts: Any = open_artifact(options.artifact, "cpu", options.precision)
    ids = Catalog.read(options.artifact / "catalog.parquet").item_ids
    given = Settings.model_fields
    limits = Limits(
        given["max_batch_tokens"].default, given["max_batch_requests"].default, 10**9,
        given["max_batch_padding"].default, packed=True, enough=ENOUGH_POSITIONS[options.precision],
    )  # fmt: skip

    def wire(asked: Iterator[Asked], host: str) -> Iterator[bytes]:
        for each in asked:
            body = {"history": [ids[row] for row in each.history], "k": K}
            yield request(host, "/recommend", json.dumps(body).encode())

    rows = []
    with Server(options.artifact, {**SETTINGS, "precision": options.precision}) as server:
        host = server.url.removeprefix("http://")
        for number in range(options.rounds):
            costs = measured_costs(parts, requests(parts, seed=100 + number), cores, 6)
            rps, alone_s = asyncio.run(capacity_of(server, wire(requests(parts, 200 + number), host), 10.0))
            rate = options.share * rps
            arrivals = arrivals_of(number, rate, options.seconds, requests(parts, 300 + number))
            expected = sorted(simulate(arrivals, limits, costs, cores.lanes))
            found = asyncio.run(real(server, wire(requests(parts, 300 + number), host), rate, options.seconds, number))
            row = {"capacity_rps": round(rps, 2), "alone_ms": round(1000 * alone_s, 2), "requests": len(found)}
            for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
                service, model = percentile(found, share), percentile(expected, share)
                assert service is not None and model is not None
                row |= {f"{name}_ms": round(1000 * service, 2), f"{name}_simulated_ms": round(1000 * model, 2)}
                row[f"{name}_ratio"] = round(service / model, 3)
            rows.append(row)
            console.print(row)
    medians = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    figures = {"artifact": options.artifact.name, "precision": options.precision, "share": options.share}
    table: list[dict[str, Any]] = [{"round": "median", **medians}]
    table += [{"round": number + 1, **row} for number, row in enumerate(rows)]
    RESULT.publish({**figures, "medians": medians, "rounds": rows}, options.result, table)


if __name__ == "__main__":
    main()
