"""Import of a large csv beside what polars needs to read and sort it.

A file of interactions is generated (users and items drawn with a skew, times rising, rows in random order). In turns a
process of its own reads and sorts it with polars alone, imports it (`anyo data import`), and reads the imported folder
as every command does. Each reports the processor time, the time and the peak of its memory. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.lib.results import ResultFile
from training.data import read_dataset
from training.data.importing import ImportOptions, import_data

USERS, ITEMS = 200_000, 50_000
RESULT = ResultFile(__file__, __doc__)


def write(path: Path, rows: int) -> None:
    """Write the file: `user_id,item_id,timestamp`."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": (USERS * rng.random(rows) ** 1.5).astype(np.int64),
            "item_id": (ITEMS * rng.random(rows) ** 3).astype(np.int64),
            "timestamp": rng.permutation(rows) + 1_500_000_000,
        }
    )
    frame.select(
        pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id"), "timestamp"
    ).write_csv(path)


def with_polars(path: Path, out: Path) -> None:
    """Read and sort, by user and time."""
    pl.read_csv(path).sort("user_id", "timestamp")


def with_import(path: Path, out: Path) -> None:
    """Import, without the interpreter's start."""
    import_data([path], out, ImportOptions(), lambda *_: True)


def with_reading(path: Path, out: Path) -> None:
    """Read what was imported."""
    read_dataset(out)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "polars": with_polars,
    "import": with_import,
    "read imported": with_reading,
}


def measured(way: str, path: Path, out: Path) -> dict[str, float]:
    """Processor seconds, seconds and peak MiB of one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quality.import_speed", "--way", way, "--file", str(path)]
    ended = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True, env=os.environ)
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def once(way: str, path: Path, out: Path) -> None:
    """Take one way and print what it cost."""
    before, start = time.process_time(), time.perf_counter()
    WAYS[way](path, out)
    spent, passed = time.process_time() - before, time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_s": spent, "s": passed, "peak_mib": peak}))


def main() -> None:
    """Measure by the options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--pairs", type=int, default=3, help="rounds; each way once in every round")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    RESULT.add_option(parser)
    given = parser.parse_args()
    if given.way:
        once(given.way, given.file, given.out)
        return
    rounds: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "interactions.csv"
        write(path, given.rows)
        for _ in range(given.pairs):
            for way in WAYS:
                rounds[way].append(measured(way, path, Path(folder) / "out"))
    plain = rounds["polars"]
    rows: list[dict[str, str | float]] = []
    for way, found in rounds.items():
        row: dict[str, str | float] = {
            key: statistics.median(each[key] for each in found) for key in ("cpu_s", "s", "peak_mib")
        }
        ratios = [each["cpu_s"] / beside["cpu_s"] for each, beside in zip(found, plain, strict=True)]
        rows.append({"way": way, "rows": given.rows, **row, "cpu_times_polars": statistics.median(ratios)})
    RESULT.publish(rows, given.result)


if __name__ == "__main__":
    main()
