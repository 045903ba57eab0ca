"""Growth of the kinds of index: recall, latency and build time from 10,000 items to 10,000,000, beside a peer.

Vectors are synthetic with the neighbour structure of real ones: each is a mixture of a trained item vector and some of
its nearest neighbours, with noise as large as the distance to the nearest. The local dimension (maximum likelihood,
Levina and Bickel 2004) of both is printed. Queries are user vectors of the artifact for histories of the data set.

    python -m benchmarks.engine.index_growth ARTIFACT --data DIR --sizes 10000 100000 1000000 --limit-gib 8

Vectors are made in a file, inverted files are built from it in parts and opened with their vectors mapped, so that
nothing but ``flat``, ``hnsw`` and the peer holds all vectors in memory; ``--limit-gib`` bounds the memory that the
process writes to (RLIMIT_DATA). Where ``flat`` is among the kinds, a search of every other one is timed in turns with
an exact search of the same query. What has been made and measured is kept in ``--state``: started again, it goes on.
The peer ``usearch`` (HNSW) needs its package, and is left out of sizes above 100,000, which it takes hours to build.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from safetensors.numpy import load_file

from benchmarks.lib.results import ResultFile
from index import open_index, save_index, spec_of
from index.approximate import overlaps
from index.building.in_parts import build_streamed
from index.ivf.cells import IvfIndex
from index.ivf.on_disk import DiskVectors
from index.kinds import index_class
from service.artifacts.loading import LoadedArtifact, open_artifact
from service.bulk.histories import read_histories

NEIGHBOURS, QUERIES, TOP, TIMED, BLOCK = 8, 1000, 100, 200, 50_000
LID_NEIGHBOURS, LID_POINTS, LID_SAMPLE = 20, 500, 100_000
SPECS: dict[str, dict[str, Any]] = {
    "flat": {},
    "ivf-fastscan": {},
    "ivf-sq": {},
    "ivf-pq": {},
    "hnsw": {"build_effort": 100},
}
PEER, PEER_LINKS, PEER_EFFORT = "usearch", 16, 128
PEER_MOST = 100_000
PEER_SEARCH = (100, 200, 400, 800, 1600)
ENOUGH = 0.999

Search = Callable[[np.ndarray], np.ndarray]

RESULT = ResultFile(__file__, __doc__)


def synthetic(real_MD: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Vectors like the real ones, ``size`` of them in blocks [B, D]."""
    rng = np.random.default_rng(0)
    dim = real_MD.shape[1]
    flat = faiss.IndexFlatL2(dim)
    flat.add(real_MD)
    squared, near_MK = flat.search(real_MD, NEIGHBOURS + 1)
    step_M = np.sqrt(np.maximum(squared[:, 1], 0)) / np.sqrt(dim)
    for first in range(0, size, BLOCK):
        rows = rng.integers(0, len(real_MD), min(BLOCK, size - first))
        weights = rng.dirichlet(np.r_[2.0, np.full(NEIGHBOURS, 0.25)], len(rows)).astype(np.float32)
        mixed = np.einsum("bk,bkd->bd", weights, real_MD[near_MK[rows]])
        noise = rng.standard_normal(mixed.shape, dtype=np.float32) * step_M[rows, None]
        yield (mixed + noise).astype(np.float32)


def write_table(path: Path, name: str, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Write a safetensors file of one tensor [N, D], float32, block by block."""
    size = 4 * shape[0] * shape[1]
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}})
    header += " " * (-len(header) % 8)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        for block in blocks:
            file.write(np.ascontiguousarray(block, np.float32).tobytes())
        if file.tell() != 8 + len(header) + size:
            raise ValueError(f"{path}: the blocks are not {shape[0]} rows of {shape[1]} numbers")
    part.replace(path)


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


def timed(searches: Sequence[Search], queries_QD: np.ndarray) -> list[float]:
    """Median milliseconds of one query for `TOP` items, of searches that take turns."""
    seconds: list[list[float]] = [[] for _ in searches]
    for query_D in queries_QD[:TIMED]:
        for search, each in zip(searches, seconds, strict=True):
            started = time.perf_counter()
            search(query_D[None])
            each.append(time.perf_counter() - started)
    return [1e3 * statistics.median(each) for each in seconds]


def _fills(index: IvfIndex, queries_QD: np.ndarray) -> bool:
    """Whether exact search must fill an answer, because the cells that are read hold fewer than `TOP` items."""
    _, rows_QW = index._candidates(queries_QD, TOP, None)
    return bool(((rows_QW >= 0).sum(axis=1) < TOP).any())


def stored(
    kind: str, source: Path, folder: Path, memory_mib: int, queries_QD: np.ndarray
) -> Iterator[tuple[int, Search]]:
    """The searches of one of our kinds at efforts where all answers are its own, built unless it is there."""
    vectors, spec = DiskVectors(source, BLOCK), spec_of(kind, SPECS[kind])
    if not (folder / "index.json").exists():
        started = time.perf_counter()
        if issubclass(index_class(kind), IvfIndex):
            build_streamed(spec, source, folder, memory_mib, say=lambda line: None)
        else:
            save_index(index_class(kind).make(spec, vectors.vectors()), folder)
        (folder / "seconds").write_text(str(time.perf_counter() - started))
    built = open_index(folder, mapped=True)
    for variant in built.variants() or (built,):
        if not isinstance(variant, IvfIndex) or not _fills(variant, queries_QD):
            yield variant.effort, lambda queries, index=variant: index.search(queries, TOP)[1]  # type: ignore[misc]


def peer(source: Path, folder: Path) -> Iterator[tuple[int, Search]]:
    """The searches of usearch by effort, built by one thread unless it is there."""
    vectors = DiskVectors(source, BLOCK)
    made = importlib.import_module("usearch.index").Index(
        ndim=vectors.dim, metric="ip", dtype="f32", connectivity=PEER_LINKS, expansion_add=PEER_EFFORT
    )
    file = folder / "index.usearch"
    if file.exists():
        made.load(str(file))
    else:
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        for first, block in vectors.blocks():
            made.add(np.arange(first, first + len(block)), block, threads=1)
        (folder / "seconds").write_text(str(time.perf_counter() - started))
        made.save(str(file))
    for effort in PEER_SEARCH:
        made.expansion_search = effort

        def search(queries: np.ndarray) -> np.ndarray:
            found = made.search(queries, TOP, threads=1).keys
            return np.asarray(found, np.int64).reshape(len(queries), -1)

        yield effort, search


def rows_of(
    kind: str,
    source: Path,
    queries_QD: np.ndarray,
    exact_QK: np.ndarray,
    state: Path,
    memory_mib: int,
    beside: Sequence[Search],
) -> list[dict[str, Any]]:
    """A row of results for every effort up to recall .999, from its file where they were measured before; ``beside``
    may hold the exact search that takes turns with it."""
    folder = state / f"{source.stem}-{kind}"
    file = state / f"{source.stem}-{kind}.json"
    if file.exists():
        kept: list[dict[str, Any]] = json.loads(file.read_text())
        return kept
    found = []
    for effort, search in (
        peer(source, folder) if kind == PEER else stored(kind, source, folder, memory_mib, queries_QD)
    ):
        recall = float(np.mean(overlaps(search(queries_QD), exact_QK)))
        p50, *exact_p50 = timed((search, *beside), queries_QD)
        found.append({
            "items": DiskVectors(source, 1).size, "kind": kind, "effort": effort or None,
            "recall@100": round(recall, 4), "p50": round(p50, 3),
            "exact_p50": round(exact_p50[0], 3) if exact_p50 else None,
            "times_faster": round(exact_p50[0] / p50, 1) if exact_p50 else None,
            "build": round(float((folder / "seconds").read_text()), 1),
        })  # fmt: skip
        print(json.dumps(found[-1]), flush=True)
        if recall > ENOUGH:
            break
    file.write_text(json.dumps(found))
    return found


def main() -> None:
    """Measure every kind at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", default=["flat", "ivf-fastscan", "ivf-sq"], choices=[*SPECS, PEER])
    parser.add_argument("--state", type=Path, default=Path("artifacts/.growth"), help="vectors, indexes and rows")
    parser.add_argument("--memory-mib", type=int, default=1024, help="of builds in parts")
    parser.add_argument("--limit-gib", type=float, help="memory that the process may write to")
    RESULT.add_option(parser)
    given = parser.parse_args()
    if given.limit_gib:
        limit = int(given.limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    given.state.mkdir(parents=True, exist_ok=True)
    faiss.omp_set_num_threads(1)
    (real_MD,) = load_file(given.artifact / "item_vectors.safetensors").values()
    real_MD = np.ascontiguousarray(real_MD, np.float32)
    queries_QD = user_vectors(given.artifact, given.data)
    print(json.dumps({"queries": len(queries_QD), "real_items": len(real_MD), "dim": real_MD.shape[1],
                      "local_dimension_real": round(local_dimension(real_MD), 1)}))  # fmt: skip
    found: list[dict[str, Any]] = []
    for size in given.sizes:
        source = given.state / f"vectors-{size}.safetensors"
        if not source.exists():
            write_table(source, "vectors", (size, real_MD.shape[1]), synthetic(real_MD, size))
        vectors = DiskVectors(source, BLOCK)
        dimension = local_dimension(vectors.vectors(np.arange(min(size, LID_SAMPLE))))
        print(json.dumps({"items": size, "local_dimension": round(dimension, 1)}), flush=True)
        answers = given.state / f"exact-{size}.npy"
        if not answers.exists():
            np.save(answers, vectors.search(queries_QD, TOP)[1])
        beside: list[Search] = []
        for kind in sorted(given.kinds, key=lambda kind: kind != "flat"):
            if kind != PEER or size <= PEER_MOST:
                exact_QK = np.load(answers)
                found += rows_of(kind, source, queries_QD, exact_QK, given.state, given.memory_mib, beside)
            if kind == "flat":
                ((_, exact),) = stored(kind, source, given.state / f"{source.stem}-{kind}", 0, queries_QD)
                beside.append(exact)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    RESULT.publish({"peak_mib": peak_mib}, given.result, found)


if __name__ == "__main__":
    main()
