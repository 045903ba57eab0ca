"""Latency and memory of an artifact, measured in a process of its own that holds nothing else.

``python -m training.comparison.footprint`` reads one JSON object from standard input, ``{"artifact": folder,
"histories": [[row, …], …]}``, and writes one to standard output. A request is everything from a history of catalog rows
to ten items, without HTTP; requests come one at a time. With ``"second": {"ranker": folder, "candidates": C}`` it is
that of two stages, and the dense stage alone is timed before.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from index import Catalog, ItemIndex
from modeling.artifact.manifest import open_files
from modeling.cores import asked_threads, available_cores
from modeling.generation.api import ListQuery
from modeling.methods import load, method_of
from modeling.methods.base_ranking import Rerank, ranker_of
from training.served_index import served_index

TOP = 10
Answer = Callable[[Sequence[int]], Any]
WARM = 5
"""Requests before the first that is timed."""
SECONDS = 60.0
"""No request is begun after this; at least one is timed."""


class SecondStage(NamedTuple):
    """Folder of the artifact that ranks, and how many candidates it orders."""

    ranker: Path
    candidates: int


def footprint_of(folder: Path, histories: Sequence[Sequence[int]], second: SecondStage | None = None) -> dict[str, Any]:
    """Milliseconds of a request and MiB of memory, from a process of its own; an ``error`` where it failed.

    Args:
        folder: of the artifact.
        histories: rows of the catalog, a history a request.
        second: what ranks the items that it retrieves. Then ``dense`` has the times of the first stage alone.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    asked: dict[str, Any] = {"artifact": str(folder.absolute()), "histories": [[*map(int, rows)] for rows in histories]}
    if second is not None:
        asked["second"] = {"ranker": str(second.ranker.absolute()), "candidates": second.candidates}
    done = subprocess.run(
        [sys.executable, "-m", __name__], input=json.dumps(asked), capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"status {done.returncode}: {last[:200]}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(folder: Path, histories: Sequence[Sequence[int]], second: SecondStage | None = None) -> dict[str, Any]:
    """See `footprint_of`; in this process."""
    torch.set_num_threads(asked_threads() or available_cores())
    before = _resident()
    model, index = _loaded(folder)
    answer = _answering(model, index)
    dense = None
    if second is not None:
        ranker = ranker_of(_loaded(second.ranker)[0])
        assert ranker is not None and index is not None, "the stages were composed before"
        both = Rerank(model, ranker, second.candidates, index)
        loaded = _resident()
        dense, answer = {"dense": _timed(answer, histories)}, _answering(both, None)
    else:
        loaded = _resident()
    return {
        **_timed(answer, histories),
        **(dense or {}),
        "load_mib": round((loaded - before) / 2**20, 1),
        "memory_mib": round((_resident() - before) / 2**20, 1),
        "threads": torch.get_num_threads(),
    }


def _loaded(folder: Path) -> tuple[Any, ItemIndex | None]:
    """The model of an artifact, and its index where it gives vectors."""
    files, manifest = open_files(folder)
    catalog = Catalog.parse(files.read("catalog.parquet"), folder / "catalog.parquet", manifest.catalog_size)
    loaded = load(files, catalog.popular())
    if method_of(manifest, files.name)[0].shape == "list":
        return loaded.model, None
    return loaded.model, served_index(files, loaded)


def _answering(model: Any, index: ItemIndex | None) -> Answer:
    """One request: by search where there is an index, else by the list that the model gives."""
    if index is None:
        return lambda rows: model.write([model.prepare(list(rows), None)], [ListQuery(TOP, np.asarray(rows, np.int64))])
    encoder = model.encoder

    def answer(rows: Sequence[int]) -> Any:
        prompt = encoder.prepare(list(rows[-encoder.history_limit :]))
        return index.search(encoder.encode([prompt]), TOP, exclude=[np.asarray(rows, np.int64)])

    return answer


def _timed(answer: Answer, histories: Sequence[Sequence[int]]) -> dict[str, Any]:
    started, spent = time.monotonic(), []
    for rows in histories[:WARM]:
        answer(rows)
        if time.monotonic() - started > SECONDS / 2:
            break
    for rows in histories:
        begin = time.perf_counter()
        answer(rows)
        spent.append(1000 * (time.perf_counter() - begin))
        if time.monotonic() - started > SECONDS:
            break
    p50, p95 = np.percentile(spent, (50, 95))
    return {"requests": len(spent), "p50_ms": round(float(p50), 3), "p95_ms": round(float(p95), 3)}


def _resident() -> int:
    """Bytes in memory now; where the system does not say, the most so far."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def main() -> None:
    """Measure what standard input names."""
    asked = json.load(sys.stdin)
    given = asked.get("second")
    second = None if given is None else SecondStage(Path(given["ranker"]), given["candidates"])
    print(json.dumps(measure(Path(asked["artifact"]), asked["histories"], second)))


if __name__ == "__main__":
    main()
