"""Swaps artifacts and ends processes under load: does a request fail, does memory come back?

    python -m benchmarks.faults.swaps ARTIFACT OTHER [--swaps 50] [--terms 20] [--rate 50]

Both folders are copied into a root; what is served is swapped between them by exchanging the folder and loading it
again (`POST /artifacts/{name}/load`) while requests arrive in an open loop. Memory is compared after `--warm` swaps,
when every code path has run once, and after the last. Then a process is ended `--terms` times by SIGTERM under load:
every request that was due before the signal must be answered. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.lib.load import Load, Pool, milliseconds, open_loop, percentile
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server, recommendations
from modeling.cores import affinity_cores

NAME = "served"

RESULT = ResultFile(__file__, __doc__)


def exchange(root: Path) -> None:
    """Let the two artifacts change places."""
    (root / NAME).rename(root / ".between")
    (root / "other").rename(root / NAME)
    (root / ".between").rename(root / "other")


async def swap_under_load(server: Server, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Swap while requests arrive."""
    rng = random.Random(options.seed)
    pool, ended = Pool(server.url), False
    load_task = asyncio.create_task(
        open_loop(
            pool, recommendations(server, rng), rate=options.rate, seconds=3600, rng=rng, stop=lambda: ended,
        )
    )  # fmt: skip
    seconds, resident, versions = [], [], set()
    await asyncio.sleep(1)
    for _ in range(options.warm + options.swaps):
        exchange(root)
        started = time.monotonic()
        answer = await asyncio.to_thread(server.post, f"/artifacts/{NAME}/load")
        seconds.append(time.monotonic() - started)
        if answer.status_code != 200 or not answer.json()["changed"]:
            raise SystemExit(f"a swap failed: {answer.text}")
        versions.add(answer.json()["version"])
        resident.append(server.resident_kib())
    ended = True
    load = await load_task
    pool.close()
    # Two artifacts of different size take turns: like is compared with like.
    before = resident[options.warm - 2 : options.warm]
    after = resident[-2:]
    return {
        "swaps": options.swaps,
        "versions": len(versions),
        "swap_p50_s": round(percentile(sorted(seconds), 0.5) or 0, 3),
        **_failures(load),
        "resident_kib": {"before": max(before), "after": max(after), "all": resident},
        "memory_growth": round(max(after) / max(before) - 1, 4),
    }


def _failures(load: Load) -> dict[str, Any]:
    return {
        "requests": len(load.answers),
        "statuses": load.statuses(),
        "failed": sum(answer.status != 200 for answer in load.answers),
        "p50_ms": milliseconds(percentile(load.latencies(200), 0.5)),
        "p99_ms": milliseconds(percentile(load.latencies(200), 0.99)),
    }


async def end_under_load(artifact: Path, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """End one process by SIGTERM while requests arrive; count those that were sent before and not answered with 200."""
    with Server(artifact, {"user_cache_entries": 0}) as server:
        rng = random.Random(seed)
        pool = Pool(server.url)
        ended: list[float] = []
        started = time.monotonic()
        task = asyncio.create_task(
            open_loop(
                pool, recommendations(server, rng), rate=options.rate, seconds=60, rng=rng, stop=lambda: bool(ended),
            )
        )  # fmt: skip
        await asyncio.sleep(rng.uniform(1.0, 2.0))
        server.process.send_signal(signal.SIGTERM)
        ended.append(time.monotonic() - started)
        load = await task
        pool.close()
        code = await asyncio.to_thread(server.process.wait, 60)
        # What was due after the signal may have found the door closed; everything before it must have been answered.
        before = [answer for answer in load.answers if answer.due < ended[0]]
        return {
            "requests": len(before),
            "in_flight": sum(answer.due + answer.seconds > ended[0] for answer in before),
            "failed": sum(answer.status != 200 for answer in before),
            "code": code,
        }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("other", type=Path, help="another version, to swap with")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--warm", type=int, default=4, help="swaps before memory is looked at, at least 2")
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(options.artifact, root / NAME)
        shutil.copytree(options.other, root / "other")
        swaps: dict[str, Any] = {}
        if options.swaps:
            settings = {"artifacts_root": root, "user_cache_entries": 256, "feedback_entries": 256}
            with Server(root / NAME, settings) as server:
                # It is known by the name in its manifest; under its folder's name it is loaded and activated first.
                for step in ("load", "activate"):
                    if (answer := server.post(f"/artifacts/{NAME}/{step}")).status_code != 200:
                        raise SystemExit(f"{step} failed: {answer.text}")
                for row in server.get("/artifacts")["items"]:
                    if row["name"] != NAME:
                        server.post(f"/artifacts/{row['name']}/unload")
                swaps = asyncio.run(swap_under_load(server, root, options))
                swaps["exit_code"] = server.end()
        terms = [asyncio.run(end_under_load(root / NAME, options, seed)) for seed in range(options.terms)]
    RESULT.publish({
        "artifacts": [options.artifact.name, options.other.name],
        "swaps": swaps,
        "terms": {
            "ended": len(terms),
            "requests": sum(each["requests"] for each in terms),
            "in_flight": sum(each["in_flight"] for each in terms),
            "failed": sum(each["failed"] for each in terms),
            "exit_codes": sorted({each["code"] for each in terms}),
        },
        "cores": affinity_cores(),
    }, options.result)  # fmt: skip


if __name__ == "__main__":
    main()
