"""Our service with different settings under one load, in turn: what a setting is worth over HTTP.

    python -m benchmarks.engine.variants ARTIFACT --variant fp32: --variant int8:precision=int8 [--clients 16] \
        [--returning 64]

A variant is a name and settings of the service, `name:setting=value,setting=value`. In each round every variant is
started, warmed up and loaded by clients that ask all the time, with the same histories of about twenty different items.
`--returning N`: N users instead, one after the other, each with one item more than at its last request; let them all
be seen while it warms up. The cache of user vectors is off. Medians of the rounds are reported, with the ratio to the
first variant of the same round; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.lib.load import Pool, closed_loop, request
from benchmarks.lib.results import ResultFile, rows_of
from benchmarks.lib.server import Server
from benchmarks.serving.load_runs import figures, histories

FIXED = {"user_cache_entries": 0, "max_queued_tokens": 2**26, "max_queue_seconds": 600}
FIGURES = ("per_s", "p50_ms", "p99_ms", "cpu_ms")

RESULT = ResultFile(__file__, __doc__)


def returning(items: Sequence[str], users: int, seed: str) -> Iterator[list[str]]:
    """Yield the histories of users in turn; each begins with about twenty items and grows by one."""
    first = histories(items, seed)
    known = [next(first) for _ in range(users)]
    rng = random.Random(seed + "next")
    for user in itertools.cycle(range(users)):
        yield list(known[user])
        known[user].append(rng.choice(items))


def variant(text: str) -> tuple[str, dict[str, str]]:
    """Return the name and settings of `name:setting=value,…`; raises ValueError."""
    name, colon, rest = text.partition(":")
    pairs = [pair.partition("=") for pair in rest.split(",") if pair]
    if not name or not colon or not all(sign for _, sign, _ in pairs):
        raise ValueError(f"variant {text!r} is not of the form name:setting=value,setting=value")
    return name, {key: value for key, _, value in pairs}


async def load(server: Server, asked: Iterator[bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Return the figures of one closed loop."""
    before, pool = server.cpu_s(), Pool(server.url)
    try:
        found = await closed_loop(pool, asked, clients=clients, seconds=seconds)
    finally:
        pool.close()
    return figures(found, server.cpu_s() - before)


def measure(options: argparse.Namespace, settings: dict[str, str], seed: str) -> dict[str, Any]:
    """Return the figures of one variant in one round."""
    with Server(options.artifact, FIXED | settings) as server:
        pages = [server.get(f"/items?limit=200&offset={offset}")["items"] for offset in range(0, 1000, 200)]
        items = [item["item_id"] for page in pages for item in page]
        users = options.returning
        asked = returning(items, users, seed) if users else histories(items, seed)
        host = server.url.removeprefix("http://")
        bodies = (request(host, "/recommend", json.dumps({"history": each, "k": 10}).encode()) for each in asked)
        asyncio.run(load(server, bodies, options.clients, options.warm_up))
        return asyncio.run(load(server, bodies, options.clients, options.seconds))


def main() -> None:
    """Measure in turn, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--variant", action="append", required=True, type=variant)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--warm-up", type=float, default=2.0)
    parser.add_argument("--returning", type=int, default=0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in options.variant}
    for number in range(options.rounds):
        for name, settings in options.variant:
            found[name].append(measure(options, settings, f"round {number}"))
            console.print(f"round {number + 1}, {name}: {found[name][-1]['per_s']:.1f} a second")
    first = found[options.variant[0][0]]
    result = {
        name: {figure: statistics.median(each[figure] for each in rounds) for figure in FIGURES}
        | {"statuses": [each["statuses"] for each in rounds]}
        | {
            f"{figure}_to_first": statistics.median(
                each[figure] / base[figure] for each, base in zip(rounds, first, strict=True)
            )
            for figure in FIGURES
        }
        for name, rounds in found.items()
    }
    for name, row in result.items():
        console.print(name, {figure: round(value, 3) for figure, value in row.items() if figure != "statuses"})
    RESULT.publish(
        {"clients": options.clients, "returning": options.returning, "variants": result},
        options.result,
        rows_of(result),
    )


if __name__ == "__main__":
    main()
