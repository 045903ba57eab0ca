"""Effect of item changes on concurrent requests, and how soon changes are visible.

    python -m benchmarks.serving.live_items ARTIFACT [--texts 20] [--vectors 100] [--lines 1] [--rounds 2]

Rounds alternate: an open loop of `/recommend` alone, and the same while items are added, so many a second embedded
from their titles and so many with a given vector, each by a `PUT /items/{id}` of its own or `--lines` of them by one
`POST /items`. A second server on the same store of items is asked for some of them until it has them: the visibility is
the time from the acknowledgement to that. Caches are off. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.lib.load import Pool, closed_loop, milliseconds, open_loop, percentile
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server, recommendations

TARGET_RATIO, TARGET_VISIBLE_S = 1.5, 1.0
LOOKED_AT = 25  # every so many of the changes is looked for on the other replica
WORDS = ("amber", "border", "candle", "drift", "ember", "fable", "garden", "harbour", "island", "jade", "kite")

RESULT = ResultFile(__file__, __doc__)


class Writer:
    """Adds items at a steady rate until told to stop."""

    def __init__(self, server: Server, other: Server, dim: int, lines: int, rng: random.Random) -> None:
        self._server, self._other, self._lines, self._rng = server, other, lines, rng
        # Numbers that are written once: making them for each item would take the generator's time from the requests.
        self._vectors = ["[" + ",".join(f"{rng.gauss(0, 0.1):.6f}" for _ in range(dim)) + "]" for _ in range(64)]
        self.acknowledged: list[float] = []
        self.visible: list[float] = []
        self.statuses: dict[int, int] = {}
        self._number = 0

    async def run(self, rate: float, with_vector: bool, stop: asyncio.Event) -> None:
        """Send at the times of a steady clock, however slow the last ones were."""
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=64)
        headers = {"x-api-key": self._server.admin_key}
        tasks: set[asyncio.Task[None]] = set()
        async with httpx.AsyncClient(base_url=self._server.url, headers=headers, limits=limits, timeout=60) as client:
            started = time.monotonic()
            for number in range(10**9):
                await asyncio.sleep(max(0.0, started + number * self._lines / rate - time.monotonic()))
                if stop.is_set():
                    break
                task = asyncio.create_task(self._add(client, with_vector))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    def _item(self, with_vector: bool) -> tuple[str, str]:
        """Id and JSON fields of the next item."""
        self._number += 1
        fields = f'"title": "The {" ".join(self._rng.sample(WORDS, 4))} {self._number}"'
        if with_vector:
            fields += f', "vector": {self._vectors[self._number % len(self._vectors)]}'
        return f"new-{self._number}", fields

    async def _add(self, client: httpx.AsyncClient, with_vector: bool) -> None:
        items = [self._item(with_vector) for _ in range(self._lines)]
        started = time.monotonic()
        if self._lines == 1:
            ((name, fields),) = items
            answer = await client.put(
                f"/items/{name}", content="{" + fields + "}", headers={"content-type": "application/json"}
            )
        else:
            body = "".join(f'{{"item_id": "{name}", {fields}}}\n' for name, fields in items)
            answer = await client.post("/items", content=body, headers={"content-type": "application/x-ndjson"})
        now = time.monotonic()
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        self.acknowledged += [now - started] * len(items)
        if self._number // LOOKED_AT != (self._number - len(items)) // LOOKED_AT:
            await self._look(items[-1][0], now)

    async def _look(self, name: str, acknowledged: float) -> None:
        """Ask the other replica for an item until it has it."""
        async with httpx.AsyncClient(base_url=self._other.url, timeout=60) as other:
            while (await other.get(f"/items/{name}/similar?k=1")).status_code != 200:
                await asyncio.sleep(0.01)
        self.visible.append(time.monotonic() - acknowledged)


async def one_round(
    server: Server, writer: Writer, rng: random.Random, rate: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure the open loop alone, then beside changes."""
    found: dict[str, Any] = {}
    for name in ("alone", "beside"):
        pool, stop = Pool(server.url), asyncio.Event()
        cpu_s, started = server.cpu_s(), time.monotonic()
        writing: list[asyncio.Task[None]] = []
        if name == "beside":
            for each, with_vector in ((options.texts, False), (options.vectors, True)):
                writing.append(asyncio.create_task(writer.run(each, with_vector, stop)))
        load = await open_loop(pool, recommendations(server, rng), rate=rate, seconds=options.seconds, rng=rng)
        stop.set()
        await asyncio.gather(*writing)
        pool.close()
        answered = load.latencies(200)
        found[name] = {
            **{share: percentile(answered, share) for share in (0.5, 0.99)},
            "cores": (server.cpu_s() - cpu_s) / (time.monotonic() - started),
            "statuses": load.statuses(),
        }
    return found


async def measure(server: Server, other: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything."""
    rng = random.Random(options.seed)
    pool, requests = Pool(server.url), recommendations(server, rng)
    await closed_loop(pool, requests, clients=16, seconds=1)
    full = await closed_loop(pool, requests, clients=16, seconds=3)
    pool.close()
    capacity = full.statuses().get("200", 0) / full.seconds
    dim = server.get("/artifacts")["items"][0]["dim"]
    writer = Writer(server, other, dim, options.lines, rng)
    rounds = [await one_round(server, writer, rng, options.share * capacity, options) for _ in range(options.rounds)]
    seen = {
        of: {name: statistics.median(each[name][of] for each in rounds) for name in ("alone", "beside")}
        for of in (0.5, 0.99, "cores")
    }
    ratio = statistics.median(each["beside"][0.99] / each["alone"][0.99] for each in rounds)
    acknowledged, visible = sorted(writer.acknowledged), sorted(writer.visible)
    return {
        "capacity_per_s": round(capacity, 1),
        "offered_per_s": round(options.share * capacity, 1),
        "upserts_per_s": {"texts": options.texts, "vectors": options.vectors},
        "upserts": len(acknowledged),
        "items_a_request": options.lines,
        "server_cores": {name: round(value, 2) for name, value in seen["cores"].items()},
        "p50_ms": {name: milliseconds(value) for name, value in seen[0.5].items()},
        "p99_ms": {name: milliseconds(value) for name, value in seen[0.99].items()},
        "p99_ratio": round(ratio, 2),
        "p99_ratio_target": TARGET_RATIO,
        "acknowledged_ms": {share: milliseconds(percentile(acknowledged, share)) for share in (0.5, 0.99)},
        "visible_elsewhere_ms": {share: milliseconds(percentile(visible, share)) for share in (0.5, 0.99, 1.0)},
        "visible_target_ms": 1000 * TARGET_VISIBLE_S,
        "statuses": {
            "writes": writer.statuses,
            **{name: [each[name]["statuses"] for each in rounds] for name in ("alone", "beside")},
        },
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path, help="dense, and embeds text")
    parser.add_argument("--texts", type=float, default=20.0, help="items a second that are embedded from their titles")
    parser.add_argument("--vectors", type=float, default=100.0, help="items a second with a given vector")
    parser.add_argument("--lines", type=int, default=1, help="items of one request: more than 1 by POST /items")
    parser.add_argument("--share", type=float, default=0.3, help="of the capacity that is offered")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each open loop")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anyo-items-") as folder:
        settings = {"user_cache_entries": 0, "item_store": f"sqlite:///{folder}/items.sqlite"}
        with Server(options.artifact, settings) as server, Server(options.artifact, settings) as other:
            server.wait_ready()
            other.wait_ready()
            result = asyncio.run(measure(server, other, options))
    RESULT.publish({"artifact": options.artifact.name, **result}, options.result)


if __name__ == "__main__":
    main()
