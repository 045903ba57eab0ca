"""Machines, memory and cost of a load, computed from stored figures.

    python -m benchmarks.serving.capacity load [--requests 1000 10000] [--share 0.8] [--core-hour 0.05] [--gpu-hour 4]
    python -m benchmarks.serving.capacity items [--items 1000000 100000000] [--dim 128] [--artifact ARTIFACT]

`load`: cores or GPUs that encode so many requests a second, by what one was measured to do (`benchmarks/results`), and
cost. Prices are assumptions. `items`: memory of every kind of index by what it keeps of an item, and the time of an
exact search, which is measured here on one core and taken from the results for a GPU, in proportion to the items. With
`--artifact` also what every process keeps of an item beside an index. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lib.results import ResultFile
from index import Catalog, FlatIndex
from index.kinds.hnsw import HnswSpec
from modeling.artifact.manifest import read_manifest
from scripts.pages.results import RESULTS
from service.artifacts.memory import catalog_bytes

GIB = 1 << 30
NUMBER, ROW = 4, 8
"""Bytes of a number of a vector, and of an item's row in a cell of an inverted file."""
LINK_BYTES = 4
REPEATS, QUERIES, TOP = 5, 32, 100
Row = dict[str, Any]

RESULT = ResultFile(__file__, __doc__)


@dataclass(frozen=True)
class Stored:
    """A figure of a stored result: the one row that holds ``where``, and its column."""

    file: str
    where: dict[str, Any]
    column: str

    def value(self) -> float:
        """Read it; raises `SystemExit` where the file has no such row, or more than one."""
        rows = json.loads((RESULTS / f"{self.file}.json").read_text(encoding="utf-8"))["rows"]
        found = [row[self.column] for row in rows if self.where.items() <= row.items()]
        if len(found) != 1:
            raise SystemExit(f"{self.file} has {len(found)} rows with {self.where}; one is needed")
        return float(found[0])


@dataclass(frozen=True)
class Encoder:
    """A model on a kind of machine.

    Attributes:
        name: of model, histories and machine.
        unit: ``core`` or ``gpu``.
        figure: milliseconds of a core for one request, or histories a second of a GPU.
    """

    name: str
    unit: str
    figure: Stored

    def per_second(self) -> float:
        """Requests a second of one core or GPU that is never without work."""
        return 1000 / self.figure.value() if self.unit == "core" else SERVED_OF_FORWARD * self.figure.value()


FIRST, GPU = "serving/serving-documented-fp32-first", "gpu/gpu-forward"
BATCH = {"case": "35 histories (histories/s)"}
ENCODERS = (
    Encoder(
        "25 M parameters, fp32, 20 titles (300 tokens)",
        "core",
        Stored(FIRST, {"system": "anyo", "clients": 64}, "cpu_ms"),
    ),
    Encoder(
        "25 M parameters, fp32, compressed history",
        "core",
        Stored(FIRST, {"system": "anyo, compressed histories", "clients": 64}, "cpu_ms"),
    ),
    Encoder("Qwen3 0.6 B, bf16, 20 titles (200 tokens), H200", "gpu", Stored(GPU, BATCH, "qwen")),
    Encoder("Llama 3.2 1 B, bf16, 20 titles (200 tokens), H200", "gpu", Stored(GPU, BATCH, "llama")),
)
SERVED_OF_FORWARD = 0.75
"""Requests of the saturated service on a GPU, of the histories of its forward alone: a note of gpu/gpu-targets."""
HOST_MS = Stored("gpu/gpu-host-overhead", {"version": "now (7dc869d)"}, "cpu_ms")
"""Processor time of one request beside a GPU. On a core it is part of the figure."""
GPU_SEARCH = Stored("gpu/gpu-search", {"items": "10 M × 128", "queries": QUERIES}, "ms")
GPU_SEARCH_ITEMS, GPU_SEARCH_DIM = 10_000_000, 128


def load_row(encoder: Encoder, requests: float, share: float, core_hour: float, gpu_hour: float) -> Row:
    """Units for a load, and cost: ``price an hour / (3.6 × requests a second)`` for a thousand requests."""
    units = math.ceil(requests / (share * encoder.per_second()))
    host = math.ceil(requests * HOST_MS.value() / 1000 / share) if encoder.unit == "gpu" else 0
    cores, gpus = (units, 0) if encoder.unit == "core" else (host, units)
    hour = cores * core_hour + gpus * gpu_hour
    return {
        "encoder": encoder.name,
        "requests_per_second": requests,
        "one_does": round(encoder.per_second(), 1),
        "cores": cores,
        "gpus": gpus,
        "price_per_hour": round(hour, 2),
        "per_thousand_requests": float(f"{hour / (3.6 * requests):.3g}"),
        "source": encoder.figure.file,
    }


def bytes_per_item(kind: str, dim: int) -> tuple[float, float]:
    """Return the bytes that an index keeps of an item: codes and links, and the vector, which inverted files may leave
    on disk (`ANYO_MAP_INDEX`)."""
    vector = float(NUMBER * dim)
    links = HnswSpec().links
    # Twice the links on the lowest level; one item in `links` is on each further level; then its place and level.
    graph = LINK_BYTES * links * (2 + 1 / (links - 1)) + 12
    beside = {"flat": 0.0, "hnsw": graph, "ivf-sq": float(dim + ROW), "ivf-pq": dim / 4 + ROW}
    return beside[kind], vector


def search_ms(items: int, dim: int) -> dict[int, float]:
    """CPU milliseconds of an exact search, by how many queries are searched together; medians."""
    rng = np.random.default_rng(0)
    index = FlatIndex.build(rng.standard_normal((items, dim), dtype=np.float32))
    queries = rng.standard_normal((QUERIES, dim), dtype=np.float32)
    found = {}
    for together in (1, QUERIES):
        times = []
        for _ in range(REPEATS):
            started = time.process_time()  # of all threads, whatever else the machine does
            index.search(queries[:together], TOP)
            times.append(time.process_time() - started)
        found[together] = 1000 * statistics.median(times)
    return found


def item_rows(items: int, dim: int, measured: int, core_ms: dict[int, float]) -> list[Row]:
    """Memory of every kind of index, and seconds of an exact search."""
    ratio = items * dim / (measured * dim)
    gpu_ratio = items * dim / (GPU_SEARCH_ITEMS * GPU_SEARCH_DIM)
    rows: list[Row] = []
    for kind in ("flat", "hnsw", "ivf-sq", "ivf-pq"):
        beside, vector = bytes_per_item(kind, dim)
        row: Row = {
            "part": f"index `{kind}`", "items": items, "bytes_per_item": round(beside + vector, 1),
            "gib": round(items * (beside + vector) / GIB, 1),
        }  # fmt: skip
        if kind.startswith("ivf"):
            row["gib_vectors_on_disk"] = round(items * beside / GIB, 1)
        if kind == "flat":
            row["core_ms_per_query"] = float(f"{core_ms[1] * ratio:.3g}")
            row["core_ms_per_query_of_32"] = float(f"{core_ms[QUERIES] * ratio / QUERIES:.3g}")
            row["h200_ms_per_query_of_32"] = float(f"{GPU_SEARCH.value() * gpu_ratio / QUERIES:.3g}")
        rows.append(row)
    return rows


def process_rows(artifact: Path, items: int) -> list[Row]:
    """Memory that every process with this artifact's catalog and model keeps of an item."""
    manifest = read_manifest(artifact)
    catalog = Catalog.read(artifact / "catalog.parquet")
    table = (artifact / "item_vectors.safetensors").stat().st_size / manifest.catalog_size
    parts = {"catalog": catalog_bytes(catalog) / len(catalog), "item table of the model": table}
    return [
        {"part": f"{name}, every process", "items": items, "bytes_per_item": round(each, 1),
         "gib": round(items * each / GIB, 1)}
        for name, each in parts.items()
    ]  # fmt: skip


def main() -> None:
    """Compute and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    load = commands.add_parser("load")
    load.add_argument("--requests", type=float, nargs="+", default=[1000, 10_000], help="a second")
    load.add_argument("--share", type=float, default=0.8, help="of what a core or a GPU can do")
    load.add_argument("--core-hour", type=float, default=0.05, help="price of a core with its memory")
    load.add_argument("--gpu-hour", type=float, default=4.0, help="price of a GPU")
    items = commands.add_parser("items")
    items.add_argument("--items", type=int, nargs="+", default=[1_000_000, 100_000_000])
    items.add_argument("--dim", type=int, default=128)
    items.add_argument("--measured", type=int, default=1_000_000, help="items of the search that is timed")
    items.add_argument("--artifact", type=Path, help="whose catalog and item table are measured")
    for each in (load, items):
        RESULT.add_option(each)
    arguments = parser.parse_args()
    if arguments.command == "load":
        prices = arguments.share, arguments.core_hour, arguments.gpu_hour
        rows = [load_row(encoder, each, *prices) for encoder in ENCODERS for each in arguments.requests]
    else:
        core_ms = search_ms(arguments.measured, arguments.dim)
        rows = [row for each in arguments.items for row in item_rows(each, arguments.dim, arguments.measured, core_ms)]
        if arguments.artifact is not None:
            rows += [row for each in arguments.items for row in process_rows(arguments.artifact, each)]
    RESULT.publish(rows, arguments.result)


if __name__ == "__main__":
    main()
