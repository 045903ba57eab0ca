"""Cost of a filter in a search of a flat index, from few items that pass to all of them.

    python -m benchmarks.engine.filtered_search [--sizes 12000 1000000] [--queries 1 32] [--repeats 3]

Item and query vectors are drawn from a normal distribution; a flat index reads all of them whatever they are. Searches
with and without allowed rows alternate; medians are compared. Answers are held against a product with the allowed
vectors. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.lib.results import ResultFile
from index import FlatIndex

SHARES = (0.0001, 0.01, 0.1, 0.5, 1.0)
K, TARGET_RATIO = 10, 3.0

RESULT = ResultFile(__file__, __doc__)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return how long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(size: int, dim: int, batch: int, repeats: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return a row for each share of allowed items."""
    items_ND = rng.standard_normal((size, dim), dtype=np.float32)
    index, query_BD = FlatIndex.build(items_ND), rng.standard_normal((batch, dim), dtype=np.float32)
    rows = []
    for share in SHARES:
        allowed = np.sort(rng.choice(size, max(1, round(size * share)), replace=False))
        _, found_BK = index.search(query_BD, K, allowed=allowed)
        best_BK = allowed[np.argsort(-(query_BD @ items_ND[allowed].T), axis=1)[:, :K]]
        wrong = int((found_BK[:, : best_BK.shape[1]] != best_BK).sum())
        plain, filtered = [], []
        for _ in range(repeats):
            plain.append(seconds_of(lambda: index.search(query_BD, K)))
            filtered.append(seconds_of(partial(index.search, query_BD, K, allowed=allowed)))
        times = {name: 1000 * statistics.median(each) for name, each in (("plain", plain), ("filtered", filtered))}
        rows.append({
            "items": size, "queries": batch, "share": share, "unfiltered_ms": round(times["plain"], 3),
            "filtered_ms": round(times["filtered"], 3), "ratio": round(times["filtered"] / times["plain"], 3),
            "wrong": wrong,
        })  # fmt: skip
    return rows


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[12_000, 1_000_000])
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 32], help="that are searched together")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    rows = [
        row
        for size in options.sizes
        for batch in options.queries
        for row in measure(size, options.dim, batch, options.repeats, rng)
    ]
    RESULT.publish({"ratio_target": TARGET_RATIO, "rows": rows}, options.result, rows)


if __name__ == "__main__":
    main()
