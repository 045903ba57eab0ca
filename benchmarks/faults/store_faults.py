"""Cost of a failing Redis for a service under a steady load: killed, restarted, stopped, full.

Starts a redis-server (append-only file, `appendfsync always`) and one service process on free ports, offers half
explicit histories, a quarter stored ones and a quarter appends (open loop), and lets one fault follow another. Each has
four phases: before it, its first second, the rest of it, and after its end. Afterwards every acknowledged event is
looked up, and once more after a SIGKILL of both. Without `--artifact` the service runs on the parts in memory that the
tests use (real HTTP, batching, search and store, no model to speak of), so times are those of the service around a
model.

Failed means: no answer, a status other than 200, or `degraded`. The last line is one JSON object; the exit status is 1
if an explicit history failed or an acknowledged event is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib.open_loop import Load, Sent, lost, show, some_items, summary
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import servers
from testing.redis_server import RedisServer, redis_server

FIRST_S = 1.0  # of a fault: time-outs, until the breaker is open
SETTLE_S = 1.5  # after a fault, until a probe has found Redis again
# Room for everything this program stores, whatever the setting would be.
KEEP = 10_000

RESULT = ResultFile(__file__, __doc__)


def failed(one: Sent) -> bool:
    """Return whether a request did not get what it asked for."""
    return one.outcome != "200"


def faults(redis: RedisServer) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Return name → (begin, end) of each fault."""
    return {
        "killed, then restarted": (redis.kill, redis.start),
        "stopped, then continued": (lambda: redis.signal(signal.SIGSTOP), lambda: redis.signal(signal.SIGCONT)),
        "memory full, then not": (lambda: redis.fill(1), lambda: redis.fill(0)),
    }


async def drive(load: Load, redis: RedisServer, seconds: float) -> dict[str, tuple[float, float]]:
    """Run the load through all faults; returns the spans (monotonic time) of all phases."""
    spans: dict[str, tuple[float, float]] = {}

    async def phase(name: str, duration: float) -> None:
        started = time.monotonic()
        await asyncio.sleep(duration)
        spans[name] = (started, time.monotonic())

    running = asyncio.create_task(load.run())
    await asyncio.sleep(1.0)  # the first connections
    for name, (begin, end) in faults(redis).items():
        await phase(f"{name}: before", seconds)
        began = time.monotonic()
        await asyncio.to_thread(begin)
        spans[f"{name}: at first"] = (began, began + FIRST_S)
        await asyncio.sleep(max(0.0, began + FIRST_S - time.monotonic()))
        await phase(f"{name}: meanwhile", seconds)
        await asyncio.to_thread(end)
        await asyncio.sleep(SETTLE_S)
        await phase(f"{name}: after", seconds)
    load.over = True
    await running
    return spans


def report(load: Load, spans: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Print each phase, return all of them."""
    phases = {}
    for name, (start, end) in spans.items():
        phases[name] = summary([one for one in load.sent if start <= one.due < end], failed)
        show(name, phases[name])
    return phases


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="an artifact folder; left out: parts in memory")
    parser.add_argument("--rate", type=float, default=80, help="requests a second (80)")
    parser.add_argument(
        "--seconds", type=float, default=8, help="length of a phase (8); nine are run, and short ones between them"
    )
    parser.add_argument("--timeout-ms", type=int, default=50, help="ANYO_REDIS_TIMEOUT_MS (50)")
    RESULT.add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anyo-faults-") as name:
        folder = Path(name)
        settings = {"redis_timeout_ms": options.timeout_ms, "store_history": KEEP, "user_cache_entries": 0}
        with redis_server(folder / "redis", "--appendonly", "yes", "--appendfsync", "always") as redis:
            with servers(1, options.artifact, {**settings, "store": redis.url}) as (service,):
                items = asyncio.run(some_items(service.url))
                load = Load(service.url, options.rate, items)
                phases = report(load, asyncio.run(drive(load, redis, options.seconds)))
                missing = asyncio.run(lost(service.url, load.acknowledged))
                os.kill(service.process.pid, signal.SIGKILL)
                redis.kill()
            redis.start()
            with servers(1, options.artifact, {**settings, "store": redis.url}) as (service,):
                missing_after_kill = asyncio.run(lost(service.url, load.acknowledged))
    explicit = [one for one in load.sent if one.kind == "explicit"]
    result = {
        "benchmark": "store_faults",
        "parts": options.artifact.name if options.artifact else "in memory, no model",
        "rate": options.rate,
        "redis_timeout_ms": options.timeout_ms,
        "requests": len(load.sent),
        "explicit_failed": sum(map(failed, explicit)),
        "acknowledged": sum(map(len, load.acknowledged.values())),
        "lost": len(missing),
        "lost_after_kill_9_of_both": len(missing_after_kill),
        "phases": phases,
    }
    for event in (missing + missing_after_kill)[:5]:
        print(f"lost: {event}", file=sys.stderr)
    RESULT.publish(result, options.result)
    sys.exit(1 if result["explicit_failed"] or missing or missing_after_kill else 0)


if __name__ == "__main__":
    main()
