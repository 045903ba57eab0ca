"""Cost of losing replicas: three services share a Redis behind HAProxy; one is killed, one is ended in order.

Starts redis-server, three service processes and HAProxy with `deploy/haproxy/haproxy.cfg` on free ports, offers a
steady load (open loop: half explicit histories, a quarter stored ones, a quarter appends), kills one replica with
SIGKILL and later ends a second one with SIGTERM. Appends carry an event_id, and the load repeats those that fail, as a
client of a balancer should; how many were is reported. Without `--artifact` the services run on the parts in memory
that the tests use. Failed means: no answer, or a status other than 200, or `degraded`.

The last line is one JSON object; the exit status is 1 if a request failed or an acknowledged event is lost or there
twice.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lib.open_loop import Load, Sent, lost, show, some_items, summary
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server, servers
from testing.balancer import balancer
from testing.redis_server import redis_server

REPLICAS = 3
KEEP = 10_000

RESULT = ResultFile(__file__, __doc__)


def failed(one: Sent) -> bool:
    """Return whether a request did not get what it asked for."""
    return one.outcome != "200"


async def drive(load: Load, replicas: list[Server], seconds: float) -> dict[str, tuple[float, float]]:
    """Run the load while replicas go; returns the spans (monotonic time) of the phases."""
    running = asyncio.create_task(load.run())
    await asyncio.sleep(1.0)  # the first connections
    times = [time.monotonic()]
    await asyncio.sleep(seconds)
    replicas[0].process.kill()
    times.append(time.monotonic())
    await asyncio.sleep(seconds)
    replicas[1].process.send_signal(signal.SIGTERM)
    times.append(time.monotonic())
    await asyncio.sleep(seconds)
    times.append(time.monotonic())
    load.over = True
    await running
    names = ("three replicas", "one killed, two left", "one ended by SIGTERM, one left")
    return dict(zip(names, itertools.pairwise(times), strict=True))


def main() -> None:
    """Run everything and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="an artifact folder; left out: parts in memory")
    parser.add_argument("--rate", type=float, default=60, help="requests a second (60)")
    parser.add_argument("--seconds", type=float, default=10, help="length of each of three phases (10)")
    parser.add_argument("--timeout-ms", type=int, default=250, help="ANYO_REDIS_TIMEOUT_MS (250: many processes here)")
    RESULT.add_option(parser)
    options = parser.parse_args()
    settings = {
        "redis_timeout_ms": options.timeout_ms,
        "store_history": KEEP,
        "user_cache_entries": 0,
        "shutdown_delay_seconds": 3.0,
    }
    with tempfile.TemporaryDirectory(prefix="anyo-replicas-") as name:
        folder = Path(name)
        with (
            redis_server(folder / "redis") as redis,
            servers(REPLICAS, options.artifact, {**settings, "store": redis.url}) as replicas,
            balancer(folder, [replica.url for replica in replicas]) as url,
        ):
            load = Load(url, options.rate, asyncio.run(some_items(url)), repeat_appends=True)
            spans = asyncio.run(drive(load, replicas, options.seconds))
            ended = replicas[1].process.wait(60)
            missing = asyncio.run(lost(replicas[2].url, load.acknowledged))
    phases = {}
    for phase, (start, end) in spans.items():
        phases[phase] = summary([one for one in load.sent if start <= one.due < end], failed)
        show(phase, phases[phase])
    result = {
        "benchmark": "replicas",
        "parts": options.artifact.name if options.artifact else "in memory, no model",
        "rate": options.rate,
        "requests": len(load.sent),
        "failed": sum(map(failed, load.sent)),
        "appends_repeated_by_the_client": load.repeated,
        "acknowledged": sum(map(len, load.acknowledged.values())),
        "lost_or_twice": len(missing),
        "exit_code_after_sigterm": ended,
        "phases": phases,
    }
    RESULT.publish(result, options.result)
    sys.exit(1 if result["failed"] or missing or ended else 0)


if __name__ == "__main__":
    main()
