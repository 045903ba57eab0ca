"""Memory of a dense artifact with very many items, built and served with its tables of items on disk.

    python -m benchmarks.engine.mapped_artifact ARTIFACT --items 10000000 --limit-gib 8 --state DIR

A trained artifact with an id tower is enlarged: its own items come first, and synthetic ones with the neighbour
structure of theirs follow (`benchmarks.engine.index_growth`). Then it is opened as the service opens it with
ANYO_MAP_INDEX, and answers histories of its own items. Each step is a process that may write to so much memory
(RLIMIT_DATA); its anonymous memory is sampled. User vectors must equal those of the small artifact bit by bit. A file
that is there is not made again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Self

import faiss
import numpy as np
import polars as pl
import torch

from benchmarks.engine.index_growth import BLOCK, synthetic, write_table
from benchmarks.lib.results import ResultFile
from index import open_index, spec_of
from index.building.in_parts import build_streamed
from index.ivf.on_disk import DiskVectors
from modeling.artifact.golden import write_golden
from modeling.artifact.manifest import MANIFEST, read_manifest, seal
from modeling.methods.dense import Artifact, load_artifact
from modeling.methods.dense_tables import ITEM_VECTORS, ITEMS
from service.artifacts.loading import open_artifact

USERS, TOP, LONGEST, SAMPLED_S = 200, 100, 20, 0.02
GOLDEN, STEPS = "golden.json", ("build", "serve")
MADE_HERE = {ITEMS, ITEM_VECTORS, "catalog.parquet", GOLDEN, MANIFEST}

RESULT = ResultFile(__file__, __doc__)


class Peak:
    """Largest anonymous memory of this process inside the block, in MiB."""

    mib = 0

    def __enter__(self) -> Self:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.wait(SAMPLED_S):
            self.mib = max(self.mib, anonymous_mib())


def anonymous_mib() -> int:
    """Memory of this process that no file backs, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) // 1024


def histories(items: int) -> list[list[int]]:
    """Histories of rows of the small artifact."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, items, rng.integers(1, LONGEST + 1)).tolist() for _ in range(USERS)]


def user_vectors(encoder: Any, items: int) -> np.ndarray:
    """User vectors [Q, D] of `histories`, one at a time as a request without company has them."""
    return np.concatenate([encoder.encode([encoder.prepare(rows)]) for rows in histories(items)])


def enlarge(source: Path, folder: Path, size: int, index: dict[str, int], memory_mib: int) -> None:
    """Write an artifact of ``size`` items, its index built in parts; raises SystemExit for another kind of model."""
    small = load_artifact(source)
    items = small.record.model.items
    if items.tower != "id" or items.untied or items.words or items.bias or small.record.model.projector.side != "user":
        raise SystemExit(f"{source} has other vectors of items than those of one id table")
    for path in (each for each in sorted(source.rglob("*")) if each.is_file()):
        name = path.relative_to(source)
        if str(name) not in MADE_HERE and name.parts[0] != "index":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    _write_tables(small, folder, size)
    _write_catalog(source, folder, size)
    if not (folder / "index" / "index.json").exists():
        queries_QD = user_vectors(small.encoder, len(small.item_vectors_ND))
        build_streamed(
            spec_of("ivf-sq", index), folder / ITEM_VECTORS, folder / "index", memory_mib, queries_QD,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )  # fmt: skip
    _seal(small, folder, size)


def _write_tables(small: Artifact, folder: Path, size: int) -> None:
    ids_ND = small.encoder.items.ids.weight.detach().numpy()
    width, more = ids_ND.shape[1], size - len(ids_ND) + 1
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    if not (folder / ITEMS).exists():
        blocks = chain([ids_ND[:-1]], synthetic(ids_ND[:-1], more), [ids_ND[-1:]])
        write_table(folder / ITEMS, "ids.weight", (size + 1, width), blocks)

    def finished() -> Iterator[np.ndarray]:
        for first, block in DiskVectors(folder / ITEMS, BLOCK).blocks():
            yield small.encoder.items.finish(torch.from_numpy(block[: size - first])).numpy()

    if not (folder / ITEM_VECTORS).exists():
        write_table(folder / ITEM_VECTORS, "vectors", (size, width), finished())


def _write_catalog(source: Path, folder: Path, size: int) -> None:
    """The catalog's columns with synthetic items behind them, never as Python's objects."""
    real = pl.read_parquet(source / "catalog.parquet")
    rows = pl.int_range(real.height, size, eager=True)
    more = pl.DataFrame({
        "row": rows, "item_id": "s" + rows.cast(pl.String), "title": "Synthetic item " + rows.cast(pl.String),
    }).with_columns(
        categories=pl.lit([], dtype=pl.List(pl.String)), popularity=pl.lit(0, dtype=pl.Int64),
        popularity_counted_on=pl.lit(real["popularity_counted_on"][0]),
    )  # fmt: skip
    pl.concat([real.select(more.columns), more]).write_parquet(folder / "catalog.parquet")


def _seal(small: Artifact, folder: Path, size: int) -> None:
    """Write golden histories with the lists that the large index gives, and the manifest."""
    index = open_index(folder / "index", mapped=True)
    rows = pl.scan_parquet(folder / "catalog.parquet").select("row", "item_id")
    row_of = dict(rows.head(len(small.item_vectors_ND)).select("item_id", "row").collect().iter_rows())
    cases = []
    for case in small.golden:
        own = [row_of[item] for item in case.history]
        _, (found,) = index.search(np.array([case.vector], np.float32), len(case.top), exclude=[np.array(own)])
        ids = dict(rows.filter(pl.col("row").is_in(found.tolist())).collect().iter_rows())
        cases.append(case.model_copy(update={"top": [ids[row] for row in found.tolist()]}))
    write_golden(folder, cases)
    manifest = read_manifest(small.folder)
    seal(folder, manifest.model_copy(update={"name": folder.name, "catalog_size": size}))


def serve(source: Path, folder: Path, mapped: bool = True) -> dict[str, Any]:
    """Open the artifact and answer; raises SystemExit where a user vector is not that of the small artifact."""
    started = time.perf_counter()
    parts: Any = open_artifact(folder, "cpu", map_index=mapped)
    opened_s, opened_mib = time.perf_counter() - started, anonymous_mib()
    small: Any = open_artifact(source, "cpu")
    users, milliseconds = [], []
    for rows in histories(len(small.catalog)) * 2:
        started = time.perf_counter()
        users.append(parts.encoder.encode([parts.encoder.prepare(rows)]))
        parts.index.search(users[-1], TOP, exclude=[np.array(rows)])
        milliseconds.append(1e3 * (time.perf_counter() - started))
    expected = user_vectors(small.encoder, len(small.catalog))
    if not np.array_equal(np.concatenate(users), np.concatenate([expected, expected])):
        raise SystemExit("user vectors differ from those of the small artifact")
    first, again = milliseconds[:USERS], milliseconds[USERS:]
    return {
        "open_s": round(opened_s, 1), "held_mib": opened_mib, "first_p50_ms": round(float(np.median(first)), 2),
        "first_p99_ms": round(float(np.quantile(first, 0.99)), 2), "p50_ms": round(float(np.median(again)), 2),
        "p99_ms": round(float(np.quantile(again, 0.99)), 2), "recall@10": round(parts.index.recall_at_10, 3),
    }  # fmt: skip


def step(given: argparse.Namespace) -> dict[str, Any]:
    """One step in this process, with its largest anonymous memory."""
    limit = int(given.limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    faiss.omp_set_num_threads(1)
    folder = given.state / f"items-{given.items}"
    started = time.perf_counter()
    with Peak() as peak:
        found: dict[str, Any] = {}
        if given.step == "build":
            index = {"cells": given.cells, "effort": given.effort}
            enlarge(given.artifact, folder, given.items, index, given.memory_mib)
        else:
            found = serve(given.artifact, folder)
    return {"step": given.step, "items": given.items, "seconds": round(time.perf_counter() - started, 1),
            "peak_mib": peak.mib, **found}  # fmt: skip


def main() -> None:
    """Build and serve, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--cells", type=int, default=1024, help="of the index ivf-sq; 0: 4 √N")
    parser.add_argument("--effort", type=int, default=64)
    parser.add_argument("--memory-mib", type=int, default=1024, help="of the build in parts")
    parser.add_argument("--limit-gib", type=float, default=8.0, help="memory that each step may write to")
    parser.add_argument("--state", type=Path, default=Path("artifacts/.mapped"), help="where the large artifact goes")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    RESULT.add_option(parser)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(step(given)), flush=True)
        return
    rows, words = [], [str(given.artifact)]
    for option in ("items", "cells", "effort", "memory_mib", "limit_gib", "state"):
        words += [f"--{option.replace('_', '-')}", str(getattr(given, option))]
    for name in STEPS:
        command = [sys.executable, "-m", "benchmarks.engine.mapped_artifact", *words, "--step", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    RESULT.publish({"limit_gib": given.limit_gib}, given.result, rows)


if __name__ == "__main__":
    main()
