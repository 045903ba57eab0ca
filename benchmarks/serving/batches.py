"""Throughput of `POST /recommend/batch` and of `export recommendations`, each beside the bare loop.

    python -m benchmarks.serving.batches ARTIFACT --data DIR [--rounds 7]

The bare loop (`benchmarks.serving.bare_loop`) calls the same forward and search in one process, without HTTP, queue and
waiting, with the batch size and the number of threads that are fastest. A batch has 1,000 requests with histories of
the data set; an export is of all its users, counted from its first query to the file, without the start of the process.
Loop and batch, loop and export take turns; only one works at a time. Nothing is remembered between requests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx

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
RATE = re.compile(r"\(([\d,]+) a second\)")

RESULT = ResultFile(__file__, __doc__)
Measured = Callable[[], float]


def histories_of(data: Path, catalog: Catalog, limit: int) -> tuple[list[list[str]], list[list[str]]]:
    """Histories of all users, cut to what the encoder reads and to items of the catalog; and 1,000 for a batch: theirs,
    then their beginnings."""
    found = read_histories(data)
    whole = [
        [item for item in items if catalog.row(item) is not None]
        for _, items, _ in found.part(0, len(found.users))
    ]  # fmt: skip
    users = [items[-limit:] for items in whole if items]
    beginnings = (items[: len(items) // part][-limit:] for part in count(2) for items in whole if len(items) >= part)
    chosen = users[:USERS]
    while len(chosen) < USERS:
        chosen.append(next(beginnings))
    return users, chosen


def batch_of(server: Server, chosen: list[list[str]]) -> Measured:
    """Requests a second of one call with all histories; raises SystemExit where one is not answered."""
    body = json.dumps({"requests": [{"history": history, "k": K} for history in chosen]}).encode()
    headers = {"content-type": "application/json"}
    client = httpx.Client(timeout=PATIENCE_S)

    def measured() -> float:
        started = time.perf_counter()
        answer = client.post(server.url + "/recommend/batch", content=body, headers=headers)
        taken = time.perf_counter() - started
        results = answer.raise_for_status().json()["results"]
        if len(results) != len(chosen) or any(each.get("source") != "model" for each in results):
            raise SystemExit(f"the batch was not answered as it should be: {answer.text[:500]}")
        return len(chosen) / taken

    return measured


def export_of(artifact: Path, data: Path) -> Measured:
    """Users a second of an export, as it says itself."""
    variables = {f"ANYO_{name.upper()}": value for name, value in SETTINGS.items()}

    def measured() -> float:
        with tempfile.TemporaryDirectory() as folder:
            words = ["export", "recommendations", str(artifact), "--data", str(data), "--out", f"{folder}/out"]
            done = subprocess.run(
                [sys.executable, "-m", "service", *words], cwd=ROOT, env={**os.environ, **variables}, text=True,
                capture_output=True, check=False,
            )  # fmt: skip
        said = RATE.findall(done.stdout + done.stderr)
        if done.returncode or not said:
            raise SystemExit(f"the export failed: {(done.stdout + done.stderr)[-500:]}")
        return float(said[-1].replace(",", ""))

    return measured


def pairs(name: str, ours: Measured, loop: Measured, rounds: int) -> dict[str, Any]:
    """Medians over rounds in which both are measured, in turns as to who is first; the first round warms up."""
    found = []
    for number in range(rounds + 1):
        if number % 2:
            mine, theirs = ours(), loop()
        else:
            theirs, mine = loop(), ours()
        print(f"{name}, round {number}: {mine:.1f} a second, loop {theirs:.1f}", file=sys.stderr, flush=True)
        found.append((mine, theirs))
    shares = [mine / theirs for mine, theirs in found[1:]]
    return {
        "way": name,
        "per_second": round(statistics.median(mine for mine, _ in found[1:]), 1),
        "loop_per_second": round(statistics.median(theirs for _, theirs in found[1:]), 1),
        "share": round(statistics.median(shares), 3),
        "least": round(min(shares), 3),
        "most": round(max(shares), 3),
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
    given = parser.parse_args()
    os.environ["ANYO_PRECISION"] = given.precision
    catalog = Catalog.read(given.artifact / "catalog.parquet")
    users, chosen = histories_of(given.data, catalog, load_artifact(given.artifact).encoder.history_limit)
    rows = [[[catalog.row(item) for item in history] for history in each] for each in (users, chosen)]
    with Limit(given) as limit, Server(given.artifact, SETTINGS) as server:
        tried = limit.ask("policies", histories=rows[1], seconds=POLICY_S)["saturated"]
        way = {name: tried[name] for name in ("lanes", "threads", "batch")}

        def loop(histories: Any) -> float:
            return float(limit.ask("run", histories=histories, seconds=given.seconds, **way)["per_s"])

        batch = pairs("POST /recommend/batch", batch_of(server, chosen), lambda: loop(rows[1]), given.rounds)
        export = export_of(given.artifact, given.data)
        exported = pairs("export recommendations", export, lambda: loop(rows[0]), given.rounds)
    found = [{**row, **way, "artifact": given.artifact.name, "users": size} for row, size in
             ((batch, len(chosen)), (exported, len(users)))]  # fmt: skip
    RESULT.publish({"cores": affinity_cores(), "rows": found}, given.result, found)


if __name__ == "__main__":
    main()
