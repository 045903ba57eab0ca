"""The service beside a program that spins: it must not cost more than its share of the processor.

    python -m benchmarks.engine.noisy_neighbour ARTIFACT [--rounds 3] [--seconds 8]

Rounds alternate between quiet and one busy loop beside the service: one client, then sixteen, caches off, histories
that do not repeat. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from benchmarks.lib.load import Pool, closed_loop, milliseconds, percentile
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server, recommendations

SETTINGS = {
    "user_cache_entries": "0", "max_queue_seconds": "0", "max_loop_delay_ms": "0", "deadline_ms": "120000",
    "max_queued_tokens": "1000000",
}  # fmt: skip
LENGTHS, CLIENTS = (15, 25), (1, 16)

RESULT = ResultFile(__file__, __doc__)


async def ask(server: Server, clients: int, seed: int, seconds: float) -> tuple[float, float]:
    """Requests a second and the median latency in milliseconds."""
    pool = Pool(server.url)
    try:
        load = await closed_loop(
            pool, recommendations(server, random.Random(seed), lengths=LENGTHS), clients=clients, seconds=seconds
        )
    finally:
        pool.close()
    latencies = load.latencies(200)
    span = max(answer.due + answer.seconds for answer in load.answers)
    return len(latencies) / span, milliseconds(percentile(latencies, 0.5)) or 0.0


def main() -> None:
    """Alternate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    found: dict[str, list[float]] = defaultdict(list)
    with Server(options.artifact, SETTINGS) as server:
        for number in range(2 * options.rounds):
            kind = "busy" if number % 2 else "quiet"
            spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if number % 2 else None
            try:
                for clients in CLIENTS:
                    rps, p50_ms = asyncio.run(ask(server, clients, 10 * number + clients, options.seconds))
                    found[f"{kind}, {clients} clients, req/s"].append(rps)
                    found[f"{kind}, {clients} clients, p50 ms"].append(p50_ms)
            finally:
                if spinning is not None:
                    spinning.kill()
                    spinning.wait()
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    share = medians["busy, 16 clients, req/s"] / medians["quiet, 16 clients, req/s"]
    RESULT.publish(
        {"artifact": options.artifact.name, **medians, "busy_share_of_quiet": round(share, 3)}, options.result
    )


if __name__ == "__main__":
    main()
