"""How the encoders of the service on Ray Serve grow under load and shrink after it.

    python -m benchmarks.serving.ray_scaling ARTIFACT [--most 3] [--clients 32] [--seconds 60]

The service starts with one encoder. Clients ask without a pause, so that positions queue; the number of encoder
processes is read four times a second. Then the load ends, and one client goes on until the encoders are back at one.
No request may fail while encoders start and end. The last line is one JSON object; the exit status is 1 where a request
fails or the encoders do not grow and shrink. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.lib.process_tree import end_on_sigterm
from benchmarks.lib.results import ResultFile
from benchmarks.serving.ray_app import Program, histories, under_load

REQUESTS = 200
"""Different histories."""
LOOK_S = 0.25
RESULT = ResultFile(__file__, __doc__)


class Watch:
    """Seconds at which the number of encoders changed, from the start of the load on."""

    def __init__(self, program: Program) -> None:
        self._program, self._start = program, time.monotonic()
        self.changes: list[tuple[float, int]] = []

    def look(self) -> int:
        """Return the number of encoders now."""
        count = len(self._program.replicas("encoder"))
        if not self.changes or self.changes[-1][1] != count:
            self.changes.append((round(time.monotonic() - self._start, 1), count))
            print(f"{self.changes[-1][0]:6.1f} s: {count} encoders", file=sys.stderr)
        return count

    async def until(self, seconds: float, enough: int | None = None) -> None:
        """Look until so many seconds have passed, or the number of encoders is ``enough``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and await asyncio.to_thread(self.look) != enough:
            await asyncio.sleep(LOOK_S)

    def grown(self) -> float | None:
        """Return the seconds until there was more than one encoder, or None."""
        return next((at for at, number in self.changes if number > 1), None)

    def least(self) -> float | None:
        """Return the seconds until there was one encoder again, or None."""
        grown = self.grown()
        return next((at for at, number in self.changes if number == 1 and grown is not None and at > grown), None)


async def scaled(
    program: Program, bodies: Sequence[dict[str, Any]], most: int, clients: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Return requests, failures and times under load, and after it with one client."""
    watch = Watch(program)

    def right(at: int, found: Any) -> bool:
        return isinstance(found, list) and len(found) == bodies[at]["k"]

    loaded = await under_load(program.url, bodies, right, clients, lambda: watch.until(seconds))
    largest = max(count for _, count in watch.changes)
    quiet = await under_load(program.url, bodies, right, 1, lambda: watch.until(seconds, enough=1))
    return {
        "load": {**loaded, "clients": clients, "grown_s": watch.grown(), "most_encoders": largest},
        "after it": {**quiet, "clients": 1, "back_at_one": watch.look() == 1, "back_s": watch.least()},
        "all": {"version": version("ray"), "changes": watch.changes, "limit": most},
    }  # fmt: skip


def main() -> None:
    """Run the load and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--most", type=int, default=3, help="encoders at most")
    parser.add_argument("--positions", type=int, default=64, help="queued positions that one encoder is for")
    parser.add_argument("--grow-after", type=float, default=2.0, help="seconds")
    parser.add_argument("--shrink-after", type=float, default=10.0, help="seconds")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load, and at most after it")
    RESULT.add_option(parser)
    arguments = parser.parse_args()
    end_on_sigterm()
    options = [
        "--encoders", "1", "--most-encoders", str(arguments.most), "--positions", str(arguments.positions),
        "--grow-after", str(arguments.grow_after), "--shrink-after", str(arguments.shrink_after), "--shards", "1",
        "--copies", "1",
    ]  # fmt: skip
    bodies = histories(arguments.artifact, REQUESTS)
    with (
        tempfile.TemporaryDirectory(prefix="anyo-ray-") as folder,
        Program("service.ray_serve", arguments.artifact, folder, options) as program,
    ):
        figures = asyncio.run(scaled(program, bodies, arguments.most, arguments.clients, arguments.seconds))
    RESULT.publish(figures, arguments.result)
    failed = figures["load"]["failed"] + figures["after it"]["failed"]
    sys.exit(0 if not failed and figures["load"]["most_encoders"] > 1 and figures["after it"]["back_at_one"] else 1)


if __name__ == "__main__":
    main()
