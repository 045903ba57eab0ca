"""Builds an inverted file from vectors on disk, shard by shard, within a memory limit; a build that was killed goes on.

The work is kept beside the result in a folder ``.building`` until the index is written: what was trained, and the codes
of every finished shard. The file of the index is written from there. What is in memory are the training sample or one
shard.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from index.base import UNFINISHED, FloatArray, SearchError
from index.faiss_calls import one_thread
from index.ivf.cells import IvfIndex, IvfSpec, training_rows
from index.ivf.file import Trained, write_file
from index.ivf.on_disk import DiskVectors

PLAN, TRAINED = "plan.json", "trained"
PARTS = ("cells", "codes")
COPIES = 4  # of a shard: as it is read, the differences from the centres, and what faiss makes of them
Say = Callable[[str], None]


class StreamedBuild:
    """One build of an index over the vectors of a file."""

    def __init__(self, kind: type[IvfIndex], spec: IvfSpec, source: Path, folder: Path, memory_mib: int) -> None:
        """Raises `IndexFolderError` where the vectors cannot be read, and `SearchError` where the limit is too low."""
        self._kind, self._spec = kind, spec
        shape = DiskVectors(source, 1)
        row_bytes = shape.dim * 4
        rows = (memory_mib << 20) // (COPIES * row_bytes)
        self.vectors = DiskVectors(source, rows)
        cells = spec.cells_for(shape.size)
        needed = -(-COPIES * row_bytes * max(cells, 1024) >> 20)
        if memory_mib < needed:
            raise SearchError(
                f"the memory limit is {memory_mib} MiB, and {cells} cells of {shape.dim} numbers need {needed} MiB or "
                "more; raise it, or ask for fewer cells"
            )
        self._sample_rows = max(rows, cells)
        self._work = folder / UNFINISHED
        stat = source.stat()
        self._shard_rows = rows
        self._plan = {
            "spec": spec.model_dump(), "size": shape.size, "dim": shape.dim, "shard_rows": rows,
            "source": [stat.st_size, stat.st_mtime_ns], "format": 1,
        }  # fmt: skip

    def run(self, path: Path, say: Say) -> None:
        """Train, encode what is not encoded yet, and write the file of the index; ``say`` is told of the progress."""
        self._begin(say)
        with one_thread():
            coded, trained = self._trained(say)
            shards = -(-self.vectors.size // self._shard_rows)
            names = []
            for number, (first, block) in enumerate(self.vectors.blocks(), 1):
                names.append(self._shard(first, block, coded, trained.centres_CD))
                say(f"shard {number} of {shards}: {first + len(block):,} of {self.vectors.size:,} items")
        say("writing the index")
        cells, codes = (map(partial(self._part, part=part), names) for part in PARTS)
        blocks = (block for _, block in self.vectors.blocks())
        write_file(path, trained, self.vectors.size, int(coded.code_size), cells, codes, blocks)

    def finish(self) -> None:
        """Remove the work after the index has been written."""
        shutil.rmtree(self._work)

    def _begin(self, say: Say) -> None:
        plan = self._work / PLAN
        if plan.is_file() and json.loads(plan.read_text()) == self._plan:
            say(f"going on with the build in {self._work}")
            return
        if self._work.exists():
            say(f"the build in {self._work} was of other vectors or parameters, and begins anew")
            shutil.rmtree(self._work)
        self._work.mkdir(parents=True)
        _put(plan, json.dumps(self._plan).encode())

    def _trained(self, say: Say) -> tuple[Any, Trained]:
        kept = self._load(TRAINED, ("centres", "tables"))
        if kept is None:
            say("training cells and codes")
            rows = training_rows(self._spec, self.vectors.size, self._sample_rows)
            centres_CD, coded, tables = self._kind.trained(self._spec, self.vectors.vectors(rows), self.vectors.size)
            self._keep(TRAINED, {"centres": centres_CD, "tables": tables})
            return coded, Trained(self._kind.MAGIC, centres_CD, tables)
        coded = self._kind.restored(self._spec, kept["centres"], kept["tables"], self.vectors.size)
        assert coded is not None
        return coded, Trained(self._kind.MAGIC, kept["centres"], kept["tables"])

    def _shard(self, first: int, block: FloatArray, coded: Any, centres_CD: FloatArray) -> str:
        """Encode a shard, unless it was; its name."""
        name = f"shard-{first:012d}"
        if self._load(name, PARTS) is None:
            cells_N, codes_NB = self._kind.encoded(coded, centres_CD, block)
            self._keep(name, {"cells": cells_N.astype(np.int32), "codes": codes_NB})
        return name

    def _part(self, name: str, part: str) -> Any:
        return np.load(self._work / f"{name}-{part}.npy", allow_pickle=False)

    def _keep(self, name: str, arrays: dict[str, Any]) -> None:
        """Write arrays, the file that says so last; a kill in between leaves no file that is read."""
        digest = hashlib.sha256()
        for part, array in arrays.items():
            np.save(self._work / f"{name}-{part}.npy", array, allow_pickle=False)
            digest.update(array.tobytes())
        _put(self._work / f"{name}.sha256", digest.hexdigest().encode())

    def _load(self, name: str, parts: tuple[str, ...]) -> dict[str, Any] | None:
        """The arrays that were kept under a name; None where they were not, or not whole."""
        done = self._work / f"{name}.sha256"
        if not done.is_file():
            return None
        try:
            arrays = {part: self._part(name, part) for part in parts}
        except (OSError, ValueError):
            return None
        digest = hashlib.sha256()
        for array in arrays.values():
            digest.update(array.tobytes())
        return arrays if digest.hexdigest() == done.read_text() else None


def _put(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
