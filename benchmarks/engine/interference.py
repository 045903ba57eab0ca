"""Effect of concurrent generation on dense requests: an open loop, alone and with a full generative queue.

    python -m benchmarks.engine.interference DENSE [GENERATIVE] [--share 0.3] [--seconds 20] [--rounds 3] \
        [--set NAME=VALUE]

DENSE and GENERATIVE are artifacts; without the second an untrained `small` writes
(`benchmarks/lib/small_generative.py`). One server serves both. The capacity is what a closed loop of dense requests
gets; then rounds alternate: the open loop alone, and the same while a few clients keep the generative queue from ever
being empty. Times are from the moment a request was due. Beside the two p99 stands how long one pass of generation
held the device, and one dense forward pass. Caches are off. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.engine.overload import setting
from benchmarks.lib.load import Load, Pool, closed_loop, milliseconds, open_loop, percentile, request
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import PATIENCE_S, Server, recommendations

TARGET = 2.0

RESULT = ResultFile(__file__, __doc__)


def histogram(page: str, name: str, **labels: str) -> list[tuple[float, float]]:
    """Return (upper bound, cumulative count) of a histogram on a page of metrics."""
    return [
        (float(sample.labels["le"]), sample.value)
        for family in text_string_to_metric_families(page)
        if family.name == f"anyo_{name}"
        for sample in family.samples
        if sample.name.endswith("_bucket") and labels.items() <= sample.labels.items()
    ]


def quantile(before: list[tuple[float, float]], after: list[tuple[float, float]], share: float) -> float | None:
    """Return the bucket's upper bound below which `share` of what was observed between two pages lies."""
    gained = [(bound, count - old) for (bound, count), (_, old) in zip(after, before, strict=True)]
    total = gained[-1][1] if gained else 0
    return next((bound for bound, count in gained if total and count >= share * total), None)


def generative_requests(server: Server, rng: random.Random) -> Iterator[bytes]:
    """Yield generative requests for histories that do not repeat."""
    ids = [item["item_id"] for item in server.get("/items?limit=200")["items"]]
    host = server.url.removeprefix("http://")
    while True:
        body = {"history": rng.choices(ids, k=rng.randint(5, 10)), "k": 10}
        yield request(host, "/recommend/generative", json.dumps(body).encode())


async def write_all_the_time(server: Server, rng: random.Random, clients: int, stop: asyncio.Event) -> Load:
    """Keep the generative queue full until told to stop."""
    pool, load, requests = Pool(server.url), Load(), generative_requests(server, rng)
    try:
        while not stop.is_set():
            part = await closed_loop(pool, requests, clients=clients, seconds=1.0)
            load.answers += part.answers
            load.seconds += part.seconds
    finally:
        pool.close()
    return load


async def one_round(server: Server, rng: random.Random, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the dense open loop alone, then beside generation."""
    found: dict[str, Any] = {}
    for name in ("alone", "beside"):
        pool, stop = Pool(server.url), asyncio.Event()
        writing = None
        if name == "beside":
            writing = asyncio.create_task(write_all_the_time(server, rng, options.writers, stop))
            await asyncio.sleep(2)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S) as client:
            before = (await client.get("/metrics")).text
            load = await open_loop(pool, recommendations(server, rng), rate=rate, seconds=options.seconds, rng=rng)
            after = (await client.get("/metrics")).text
        stop.set()
        pool.close()
        answered = load.latencies(200)
        found[name] = {"p50": percentile(answered, 0.5), "p99": percentile(answered, 0.99),
                       "statuses": load.statuses()}  # fmt: skip
        forward = {"endpoint": "/recommend", "stage": "forward"}
        forwards = [histogram(page, "stage_seconds", **forward) for page in (before, after)]
        found[f"forward_{name}"] = quantile(forwards[0], forwards[1], 0.5)
        if writing is not None:
            written = await writing
            passes = [histogram(page, "generative_pass_seconds") for page in (before, after)]
            found["pass"] = {share: quantile(passes[0], passes[1], share) for share in (0.5, 0.99, 1.0)}
            found["written_per_s"] = written.statuses().get("200", 0) / written.seconds
            found["writing"] = written.statuses()
        await asyncio.sleep(1)
    return found


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything."""
    rng = random.Random(options.seed)
    pool = Pool(server.url)
    requests = recommendations(server, rng)
    await closed_loop(pool, requests, clients=options.clients, seconds=2)
    full = await closed_loop(pool, requests, clients=options.clients, seconds=options.capacity_seconds)
    pool.close()
    capacity = full.statuses().get("200", 0) / full.seconds
    rounds = [await one_round(server, rng, options.share * capacity, options) for _ in range(options.rounds)]

    def median(*path: Any) -> float | None:
        values: list[float | None] = []
        for each in rounds:
            value: Any = each
            for key in path:
                value = value[key]
            values.append(value)
        known = [value for value in values if value is not None]
        return statistics.median(known) if len(known) == len(values) else None

    ratios = [each["beside"]["p99"] / each["alone"]["p99"] for each in rounds]
    longest, forward = median("pass", 1.0), median("forward_alone")
    return {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(options.share * capacity, 1),
        "alone_ms": {name: milliseconds(median("alone", name)) for name in ("p50", "p99")},
        "beside_ms": {name: milliseconds(median("beside", name)) for name in ("p50", "p99")},
        "p99_ratio": round(statistics.median(ratios), 2),
        "p99_ratios": [round(ratio, 2) for ratio in ratios],
        "target": TARGET,
        "pass_ms_at_most": {str(share): milliseconds(median("pass", share)) for share in (0.5, 0.99, 1.0)},
        "dense_forward_p50_ms_at_most": milliseconds(forward),
        "pass_within_forward": None if longest is None or forward is None else longest <= forward,
        "written_per_s": round(statistics.median(each["written_per_s"] for each in rounds), 2),
        "statuses": {name: [each[name]["statuses"] for each in rounds] for name in ("alone", "beside")},
        "writing": [each["writing"] for each in rounds],
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dense", type=Path)
    parser.add_argument("generative", type=Path, nargs="?", help="default: an untrained `small` that writes titles")
    parser.add_argument("--share", type=float, default=0.3, help="of the dense capacity that is offered")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each open loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--capacity-seconds", type=float, default=8.0)
    parser.add_argument("--clients", type=int, default=32, help="that ask all the time while capacity is measured")
    parser.add_argument("--writers", type=int, default=80, help="clients that keep the generative queue full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="given")
    RESULT.add_option(parser)
    options = parser.parse_args()
    settings = {"user_cache_entries": 0, **dict(options.given)}
    program = "benchmarks.lib.small_generative" if options.generative is None else "service"
    artifacts = [each for each in (options.dense, options.generative) if each is not None]
    with Server(artifacts[0], settings, others=artifacts[1:], program=program) as server:
        result = asyncio.run(measure(server, options))
    generative = "untrained small" if options.generative is None else options.generative.name
    figures = {"dense": options.dense.name, "generative": generative, "settings": settings}
    RESULT.publish({**figures, **result}, options.result)


if __name__ == "__main__":
    main()
