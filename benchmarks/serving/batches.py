"""Throughput of `POST /recommend/batch` and of `export recommendations`, each beside the bare loop.

    python -m benchmarks.serving.batches ARTIFACT --data DIR [--rounds 7]

The bare loop (`benchmarks.serving.bare_loop`) calls the same forward and search in one process, without HTTP, queue and
waiting, with the batch size and the number of threads that are fastest. A batch has 1,000 requests with histories of
the data set; an export is of all its users, from the first query to the parquet file, by a service that was started
before, as that of the batches was. Loop and batch, loop and export take turns; only one works at a time. Nothing is
remembered between requests. Shares are of processor time a user too, which other programs on the machine change less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from benchmarks.lib.process_tree import ProcessTree
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import PATIENCE_S, ROOT, Server
from benchmarks.serving.compare import Limit
from index import Catalog
from modeling.cores import affinity_cores
from modeling.methods.dense import load_artifact
from service.bulk.histories import read_histories

USERS, K = 1000, 10
POLICY_S = 1.0  # of each way of the bare loop that is tried
TARGET = 0.95
SETTINGS = {"user_cache_entries": "0", "deadline_ms": str(int(1000 * PATIENCE_S)), "max_loop_delay_ms": "0"}

RESULT = ResultFile(__file__, __doc__)


class Speed(NamedTuple):
    """Users a second, and milliseconds of processor time a user."""

    per_s: float
    cpu_ms: float


Measured = Callable[[], Speed]


def histories_of(data: Path, catalog: Catalog, limit: int) -> tuple[list[list[str]], list[list[str]]]:
    """Histories of all users, of items of the catalog; and 1,000 for a batch, cut to what the encoder reads: theirs,
    then their beginnings."""
    found = read_histories(data)
    whole = [
        [item for item in items if catalog.row(item) is not None]
        for _, items, _ in found.part(0, len(found.users))
    ]  # fmt: skip
    users = [items for items in whole if items]
    beginnings = (items[: len(items) // part][-limit:] for part in count(2) for items in whole if len(items) >= part)
    chosen = [items[-limit:] for items in users[:USERS]]
    while len(chosen) < USERS:
        chosen.append(next(beginnings))
    return users, chosen


def batch_of(server: Server, chosen: list[list[str]]) -> Measured:
    """The speed of one call with all histories; raises SystemExit where one is not answered."""
    body = json.dumps({"requests": [{"history": history, "k": K} for history in chosen]}).encode()
    headers = {"content-type": "application/json"}
    client = httpx.Client(timeout=PATIENCE_S)

    def measured() -> Speed:
        started, cpu = time.perf_counter(), server.cpu_s()
        answer = client.post(server.url + "/recommend/batch", content=body, headers=headers)
        taken, used = time.perf_counter() - started, server.cpu_s() - cpu
        results = answer.raise_for_status().json()["results"]
        if len(results) != len(chosen) or any(each.get("source") != "model" for each in results):
            raise SystemExit(f"the batch was not answered as it should be: {answer.text[:500]}")
        return Speed(len(chosen) / taken, 1000 * used / len(chosen))

    return measured


class Exporter:
    """A started service in a process of its own, which exports when it is asked."""

    def __init__(self, artifact: Path, data: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.serving.batches", str(artifact), "--data", str(data), "--exporter"]
        variables = {f"ANYO_{name.upper()}": value for name, value in SETTINGS.items()}
        self.tree = ProcessTree(command, cwd=ROOT, variables=variables, pipes=True)

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *error: object) -> None:
        self.tree.end()

    def __call__(self) -> Speed:
        """The speed of an export of all users."""
        assert self.tree.process.stdin is not None and self.tree.process.stdout is not None
        self.tree.process.stdin.write("\n")
        self.tree.process.stdin.flush()
        while line := self.tree.process.stdout.readline():
            if line.startswith("["):  # and no line of the log
                return Speed(*json.loads(line))
        raise SystemExit(f"the export failed: {self.tree.log()}")


async def exporter(artifact: Path, data: Path) -> None:
    """Export for every line that is read, and answer with the speed."""
    from service.bulk.export import ExportOptions, export
    from service.service import Service
    from service.settings import load_settings

    service, found = Service(load_settings(artifacts=(artifact,), store="sqlite:///:memory:")), read_histories(data)
    await service.start()
    assert service.loading is not None
    await service.loading
    for _ in sys.stdin:  # nothing else is to do meanwhile
        with tempfile.TemporaryDirectory() as folder:
            started, cpu = time.perf_counter(), time.process_time()
            users = await export(service, found, Path(folder) / "out", ExportOptions(k=K), lambda line: None)
            taken, used = time.perf_counter() - started, time.process_time() - cpu
        print(json.dumps([users / taken, 1000 * used / users]), flush=True)
    await service.close()


def pairs(name: str, ours: Measured, loop: Measured, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which both are measured, in turns as to who is first; the first round warms up."""
    found = []
    for number in range(rounds + 1):
        if number % 2:
            mine, theirs = ours(), loop()
        else:
            theirs, mine = loop(), ours()
        print(
            f"{name}, round {number}: {mine.per_s:.1f} a second, loop {theirs.per_s:.1f}", file=sys.stderr, flush=True
        )
        found.append((mine, theirs))
    shares = [mine.per_s / theirs.per_s for mine, theirs in found[1:]]
    return {
        "way": name,
        "per_second": round(statistics.median(mine.per_s for mine, _ in found[1:]), 1),
        "loop_per_second": round(statistics.median(theirs.per_s for _, theirs in found[1:]), 1),
        "share": round(statistics.median(shares), 3),
        "least": round(min(shares), 3),
        "most": round(max(shares), 3),
        "cpu_share": round(statistics.median(theirs.cpu_ms / mine.cpu_ms for mine, theirs in found[1:]), 3),
        "target": TARGET,
    }


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of the bare loop in a round")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    RESULT.add_option(parser)
    parser.add_argument("--exporter", action="store_true", help="export for every line of the input")
    given = parser.parse_args()
    if given.exporter:
        from service.engine.cpu import few_heaps, set_library_defaults

        set_library_defaults()
        few_heaps()
        asyncio.run(exporter(given.artifact, given.data))
        return
    os.environ["ANYO_PRECISION"] = given.precision
    catalog = Catalog.read(given.artifact / "catalog.parquet")
    users, chosen = histories_of(given.data, catalog, load_artifact(given.artifact).encoder.history_limit)
    rows = [[[catalog.row(item) for item in history] for history in each] for each in (users, chosen)]
    with Limit(given) as limit, Server(given.artifact, SETTINGS) as server, Exporter(given.artifact, given.data) as out:
        tried = limit.ask("policies", histories=rows[1], seconds=POLICY_S)["saturated"]
        way = {name: tried[name] for name in ("lanes", "threads", "batch")}

        def loop(histories: Any) -> Speed:
            done = limit.ask("run", histories=histories, seconds=given.seconds, **way)
            return Speed(done["per_s"], done["cpu_ms"])

        batch = pairs("POST /recommend/batch", batch_of(server, chosen), lambda: loop(rows[1]), given.rounds)
        exported = pairs("export recommendations", out, lambda: loop(rows[0]), given.rounds)
    found = [{**row, **way, "artifact": given.artifact.name, "users": size} for row, size in
             ((batch, len(chosen)), (exported, len(users)))]  # fmt: skip
    RESULT.publish({"cores": affinity_cores(), "rows": found}, given.result, found)


if __name__ == "__main__":
    main()
