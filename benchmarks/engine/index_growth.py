"""Growth of the kinds of index: recall, latency, memory and build time from 10,000 items upwards.

Vectors are synthetic with the neighbour structure of real ones: each is a mixture of a trained item vector and some of
its nearest neighbours, with noise as large as the distance to the nearest. The local dimension (maximum
likelihood, Levina and Bickel 2004) of both is printed. Queries are user vectors of the artifact for histories of the
data set.

    python -m benchmarks.engine.index_growth ARTIFACT --data DIR --sizes 10000 100000
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from safetensors.numpy import load_file

from benchmarks.lib.results import ResultFile
from index import FlatIndex, StoredIndex, spec_of
from index.approximate import overlaps
from index.ivf.cells import IvfIndex
from index.kinds import index_class
from service.artifacts.loading import LoadedArtifact, open_artifact
from service.bulk.histories import read_histories

NEIGHBOURS, QUERIES, TOP, TIMED, BLOCK = 8, 1000, 100, 200, 50_000
LID_NEIGHBOURS, LID_POINTS = 20, 500
FULL = 4  # items read for every item asked for, at least
SPECS: tuple[tuple[str, dict[str, Any]], ...] = (("ivf-sq", {}), ("ivf-pq", {}), ("hnsw", {"build_effort": 100}))

RESULT = ResultFile(__file__, __doc__)


def synthetic(real_MD: np.ndarray, size: int) -> np.ndarray:
    """Vectors [size, D] like the real ones."""
    rng = np.random.default_rng(0)
    flat = faiss.IndexFlatL2(real_MD.shape[1])
    flat.add(real_MD)
    squared, near_MK = flat.search(real_MD, NEIGHBOURS + 1)
    step_M = np.sqrt(np.maximum(squared[:, 1], 0)) / np.sqrt(real_MD.shape[1])
    made = np.empty((size, real_MD.shape[1]), np.float32)
    for first in range(0, size, BLOCK):
        rows = rng.integers(0, len(real_MD), min(BLOCK, size - first))
        weights = rng.dirichlet(np.r_[2.0, np.full(NEIGHBOURS, 0.25)], len(rows)).astype(np.float32)
        mixed = np.einsum("bk,bkd->bd", weights, real_MD[near_MK[rows]])
        noise = rng.standard_normal(mixed.shape, dtype=np.float32) * step_M[rows, None]
        made[first : first + len(rows)] = mixed + noise
    return made


def local_dimension(vectors_ND: np.ndarray) -> float:
    """Maximum likelihood estimate of the local dimension, mean over a sample."""
    rng = np.random.default_rng(1)
    flat = faiss.IndexFlatL2(vectors_ND.shape[1])
    flat.add(vectors_ND)
    squared, _ = flat.search(vectors_ND[rng.permutation(len(vectors_ND))[:LID_POINTS]], LID_NEIGHBOURS + 1)
    distances = np.sqrt(np.maximum(squared[:, 1:], 1e-12))
    return float(np.mean(1 / np.mean(np.log(distances[:, -1:] / distances[:, :-1]), axis=1)))


def user_vectors(artifact: Path, data: Path) -> np.ndarray:
    """User vectors of the artifact for the histories of up to 1,000 users, and for their beginnings."""
    loaded = open_artifact(artifact, "cpu", "fp32")
    assert isinstance(loaded, LoadedArtifact)
    prompts: list[Any] = []
    for _, items, _ in read_histories(data).part(0, QUERIES):
        rows = [row for row in map(loaded.catalog.row, items) if row is not None]
        for end in (len(rows), len(rows) // 2):
            if end and len(prompts) < QUERIES:
                prompts.append(loaded.encoder.prepare(rows[:end][-loaded.encoder.history_limit :]))
    return np.concatenate([loaded.encoder.encode(prompts[first : first + 32]) for first in range(0, len(prompts), 32)])


def timed(index: StoredIndex, queries_QD: np.ndarray) -> float:
    """Median milliseconds of one query for `TOP` items."""
    seconds = []
    for query_D in queries_QD[:TIMED]:
        started = time.perf_counter()
        index.search(query_D[None], TOP)
        seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds))


def rows_of(kind: str, given: dict[str, Any], vectors_ND: np.ndarray, queries_QD: np.ndarray) -> list[dict[str, Any]]:
    """A row of results for every effort up to recall .999, without those of which an exact search must fill answers."""
    size = len(vectors_ND)
    started = time.perf_counter()
    built = index_class(kind).make(spec_of(kind, given), vectors_ND)
    build_s = time.perf_counter() - started
    _, exact_QK = FlatIndex.build(vectors_ND).search(queries_QD, TOP)
    found = []
    for variant in built.variants() or (built,):
        if isinstance(built, IvfIndex) and variant.effort * size < FULL * TOP * built.spec.cells_for(size):
            continue
        _, rows_QK = variant.search(queries_QD, TOP)
        recall = float(np.mean(overlaps(rows_QK, exact_QK)))
        found.append({
            "items": size, "kind": kind, "effort": variant.effort or None, "recall@100": round(recall, 4),
            "p50": round(timed(variant, queries_QD), 3), "build": round(build_s, 1),
            "memory": round(built.nbytes / 2**20, 1),
        })  # fmt: skip
        print(json.dumps(found[-1]), flush=True)
        if recall > 0.999:
            break
    return found


def main() -> None:
    """Measure every kind at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", *(kind for kind, _ in SPECS)])
    RESULT.add_option(parser)
    given = parser.parse_args()
    (real_MD,) = load_file(given.artifact / "item_vectors.safetensors").values()
    real_MD = np.ascontiguousarray(real_MD, np.float32)
    queries_QD = user_vectors(given.artifact, given.data)
    print(json.dumps({"queries": len(queries_QD), "real_items": len(real_MD), "dim": real_MD.shape[1],
                      "local_dimension_real": round(local_dimension(real_MD), 1)}))  # fmt: skip
    found: list[dict[str, Any]] = []
    for size in given.sizes:
        vectors_ND = synthetic(real_MD, size)
        print(json.dumps({"items": size, "local_dimension": round(local_dimension(vectors_ND), 1)}))
        for kind, parameters in (("flat", {}), *SPECS):
            if kind in given.kinds:
                found += rows_of(kind, parameters, vectors_ND, queries_QD)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    RESULT.publish({"peak_mib": peak_mib}, given.result, found)


if __name__ == "__main__":
    main()
