"""Offers many times what a service can do: does it refuse quickly, answer the rest in time, and recover?

    python -m benchmarks.engine.overload ARTIFACT [--times 10] [--seconds 60] [--set max_queue_seconds=1.5]

Measures what the service manages when it is never without work, then a quiet baseline, then offers `--times` that for
`--seconds` in an open loop, then goes back to the quiet rate and looks when requests are as fast as before. Generator
and service share the machine's cores, so the processor time that the generator takes beyond what it took while
capacity was measured is subtracted from that capacity. Caches are off. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.load import Answer, Load, Pool, closed_loop, milliseconds, open_loop, percentile
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server, recommendations
from modeling.cores import affinity_cores

ALLOWED = {200, 429, 503, 504}
QUIET = 0.2  # of capacity
NORMAL_FACTOR, NORMAL_FLOOR_S = 3.0, 0.05
WINDOW_S = 0.5

RESULT = ResultFile(__file__, __doc__)


def recovery(answers: Sequence[Answer], normal_s: float) -> float | None:
    """Return the seconds after which every window of requests is normal again, None if that never comes.

    Normal: answered with 200, and the slowest tenth aside within `normal_s`.
    """
    last_bad = -1
    windows = int(max((answer.due for answer in answers), default=0.0) / WINDOW_S) + 1
    for number in range(windows):
        inside = [a for a in answers if number * WINDOW_S <= a.due < (number + 1) * WINDOW_S]
        slow = sum(answer.status != 200 or answer.seconds > normal_s for answer in inside)
        if slow > 0.1 * len(inside):
            last_bad = number
    return None if last_bad == windows - 1 else (last_bad + 1) * WINDOW_S


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Run the four parts."""
    rng = random.Random(options.seed)
    requests = recommendations(server, rng)
    pool = Pool(server.url)
    try:
        await closed_loop(pool, requests, clients=options.clients, seconds=min(5.0, options.capacity_seconds))
        full = await closed_loop(pool, requests, clients=options.clients, seconds=options.capacity_seconds)
        capacity = full.statuses().get("200", 0) / full.seconds
        quiet_rate = max(5.0, QUIET * capacity)
        await asyncio.sleep(1)
        quiet = await open_loop(pool, requests, rate=quiet_rate, seconds=options.quiet_seconds, rng=rng)
        used = server.cpu_s()
        flood = await open_loop(pool, requests, rate=options.times * capacity, seconds=options.seconds, rng=rng)
        flood.server_cpu_s = server.cpu_s() - used
    finally:
        pool.close()
    # `open_loop` waits for its last answers; recovery is looked at from the moment the flood ends, hence in one run.
    pool = Pool(server.url)
    try:
        flooding = asyncio.create_task(
            open_loop(pool, requests, rate=options.times * capacity, seconds=options.flood_again_seconds, rng=rng)
        )
        await asyncio.sleep(options.flood_again_seconds)
        calm = Pool(server.url)
        after = await open_loop(calm, requests, rate=quiet_rate, seconds=options.quiet_seconds, rng=rng)
        calm.close()
        await flooding
    finally:
        pool.close()
    return report(server, options, full, quiet, flood, after)


def report(
    server: Server, options: argparse.Namespace, full: Load, quiet: Load, flood: Load, after: Load
) -> dict[str, Any]:
    """Put the figures together."""
    cores = affinity_cores()
    capacity = full.statuses().get("200", 0) / full.seconds
    taken = flood.generator_cpu_s / flood.seconds - full.generator_cpu_s / full.seconds
    possible = capacity * (1 - max(0.0, taken) / cores)
    # What was answered after the last request had been sent was computed in the time of the flood's tail too.
    ended = max((answer.due + answer.seconds for answer in flood.answers), default=flood.seconds)
    accepted = flood.latencies(200)
    throughput = len(accepted) / max(flood.seconds, ended)
    normal = max(NORMAL_FLOOR_S, NORMAL_FACTOR * (percentile(quiet.latencies(200), 0.95) or 0.0))
    return {
        "artifact": options.artifact.name,
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(len(flood.answers) / flood.seconds, 1),
        "seconds": round(flood.seconds, 1),
        "statuses": flood.statuses(),
        "other_than_200_429_503_504": sum(a.status not in ALLOWED for a in flood.answers),
        "refusal_p99_ms": milliseconds(percentile(flood.latencies(429, 503), 0.99)),
        "refusal_p50_ms": milliseconds(percentile(flood.latencies(429, 503), 0.5)),
        "accepted_p50_ms": milliseconds(percentile(accepted, 0.5)),
        "accepted_p99_ms": milliseconds(percentile(accepted, 0.99)),
        "deadline_ms": options.settings.get("deadline_ms", 10_000),
        "throughput_per_s": round(throughput, 1),
        "throughput_of_capacity": round(throughput / possible, 3) if possible else None,
        "generator_cores": {"capacity": round(full.generator_cpu_s / full.seconds, 3),
                            "flood": round(flood.generator_cpu_s / flood.seconds, 3)},
        "generator_late_p99_ms": milliseconds(percentile(sorted(answer.late for answer in flood.answers), 0.99)),
        "server_cores": round(flood.server_cpu_s / flood.seconds, 3),
        "cores": cores,
        "quiet_p95_ms": milliseconds(percentile(quiet.latencies(200), 0.95)),
        "normal_ms": milliseconds(normal),
        "recovery_s": recovery(after.answers, normal),
        "resident_kib": server.resident_kib(),
    }  # fmt: skip


def setting(text: str) -> tuple[str, str]:
    """Return name and value of NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.lower(), value


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--times", type=float, default=10.0, help="of the measured capacity")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the flood")
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    parser.add_argument("--quiet-seconds", type=float, default=10.0, help="before and after")
    parser.add_argument("--flood-again-seconds", type=float, default=10.0, help="flood before recovery is looked at")
    parser.add_argument("--clients", type=int, default=64, help="that ask all the time while capacity is measured")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="given")
    RESULT.add_option(parser)
    options = parser.parse_args()
    options.settings = {"user_cache_entries": 0, **dict(options.given)}
    with Server(options.artifact, options.settings) as server:
        result = asyncio.run(measure(server, options))
        code, log = server.end(), server.log()
    RESULT.publish(
        {**result, "settings": options.settings, "exit_code": code, "log_lines": len(log.splitlines())}, options.result
    )


if __name__ == "__main__":
    main()
