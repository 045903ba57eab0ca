"""An index whose item vectors stay in a mapped file: the same answers, in a fraction of the memory."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from index import IndexFolderError, build_index, open_index, save_index, spec_of
from index.kinds import kind_names
from index.storage import INDEX_FILE, can_map, mapped_vectors, read_entry

ROOT = Path(__file__).resolve().parents[2]
SIZE, DIM = 60_000, 256
SHARE = 0.45
"""Of the file: what opening may take. Codes and rows take .15 of it here; a copy of the vectors alone .85."""
BUILT_SHARE = 0.8
"""Of the vectors: what a build in parts may take with 4 MiB for its shards; queries are made of copies of a third."""
OPEN = """
import resource, sys
from pathlib import Path
import numpy as np
from index import open_index
folder, mapped, share = sys.argv[1], sys.argv[2] == "mapped", float(sys.argv[3])
import faiss, index.kinds.ivf_sq, index.kinds.flat
status = Path("/proc/self/status").read_text()
used = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData")))
limit = used + int(share * (Path(folder) / "index.faiss").stat().st_size)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
found = open_index(folder, mapped=mapped)
queries = np.load(Path(folder).parent / "queries.npy")
np.save(Path(folder).parent / f"rows-{sys.argv[2]}.npy", found.search(queries, 20)[1])
"""
BUILD = """
import resource, sys
from pathlib import Path
import numpy as np
from index import build_index, spec_of
from index.building.in_parts import build_streamed
build_index(spec_of("ivf-fastscan"), np.random.default_rng(0).random((2000, 256)))  # BLAS takes its buffers
place, share = Path(sys.argv[1]), float(sys.argv[2])
source = place / "vectors.safetensors"
status = Path("/proc/self/status").read_text()
used = 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmData")))
limit = used + int(share * source.stat().st_size)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
spec = spec_of("ivf-fastscan", {"cells": 64, "effort": 64})
print(build_streamed(spec, source, place / "in-parts", 4).recall_at_10)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A large index of few cells, and queries."""
    place = tmp_path_factory.mktemp("mapped")
    rng = np.random.default_rng(0)
    vectors_ND = rng.standard_normal((SIZE, DIM), np.float32)
    kind = type(build_index(spec_of("ivf-sq"), vectors_ND[:100]))
    save_index(kind.make(spec_of("ivf-sq", {"cells": 8, "effort": 8, "bits": 4}), vectors_ND), place / "index")
    np.save(place / "queries.npy", vectors_ND[:4] + 0.1)
    save_file({"vectors": vectors_ND}, place / "vectors.safetensors")
    return place


def opened(place: Path, how: str) -> subprocess.CompletedProcess[str]:
    """In a process that may take `SHARE` of the file's size beyond what it has with the libraries loaded."""
    return run(OPEN, str(place / "index"), how, str(SHARE))


def run(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_opening_takes_a_fraction_of_the_file(place: Path) -> None:
    assert (place / "index" / INDEX_FILE).stat().st_size > SIZE * DIM * 4
    done = opened(place, "mapped")
    assert done.returncode == 0, done.stderr[-500:]
    copied = opened(place, "copied")
    assert "MemoryError" in copied.stderr or "bad_alloc" in copied.stderr, "the limit does not bind"
    found = np.load(place / "rows-mapped.npy")
    np.testing.assert_array_equal(found, open_index(place / "index").search(np.load(place / "queries.npy"), 20)[1])


def test_a_build_in_parts_takes_a_fraction_of_its_vectors(place: Path) -> None:
    done = run(BUILD, str(place), str(BUILT_SHARE))
    assert done.returncode == 0, done.stderr[-500:]
    assert float(done.stdout) > 0.8
    vectors_ND = open_index(place / "index", mapped=True).vectors()
    np.testing.assert_array_equal(open_index(place / "in-parts", mapped=True).vectors(), vectors_ND)


@pytest.mark.parametrize("kind", ["ivf-fastscan", "ivf-sq", "ivf-pq"])
def test_answers_are_those_of_an_index_in_memory(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors_ND = np.repeat(rng.standard_normal((1500, 16)).astype(np.float32), 2, axis=0)  # equal scores everywhere
    save_index(build_index(spec_of(kind), vectors_ND), tmp_path / "index")
    memory, mapped = open_index(tmp_path / "index"), open_index(tmp_path / "index", mapped=True)
    queries_BD = rng.standard_normal((5, 16)).astype(np.float32)
    allowed = {"all": None, "few": np.arange(7, 3000, 13), "many": np.arange(0, 3000, 2), "three": np.array([5, 9, 11])}
    for name, rows in allowed.items():
        expected, found = (
            each.search(queries_BD, 11, exclude=[np.arange(3)] * 5, allowed=rows) for each in (memory, mapped)
        )
        np.testing.assert_array_equal(found[1], expected[1], err_msg=name)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(mapped.vectors(), vectors_ND)


def test_a_bit_that_was_turned_is_refused(tmp_path: Path) -> None:
    save_index(build_index(spec_of("ivf-sq"), np.eye(40, 8, dtype=np.float32)), tmp_path / "index")
    path = tmp_path / "index" / INDEX_FILE
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexFolderError, match="sha256"):
        open_index(tmp_path / "index", mapped=True)


def test_a_file_that_is_replaced_changes_nothing_and_other_kinds_are_read(tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(2).standard_normal((300, 8)).astype(np.float32)
    save_index(build_index(spec_of("ivf-sq"), vectors_ND), tmp_path / "index")
    index = open_index(tmp_path / "index", mapped=True)
    before = index.search(vectors_ND[:3], 5)[1]
    save_index(build_index(spec_of("flat"), -vectors_ND), tmp_path / "index")
    np.testing.assert_array_equal(index.search(vectors_ND[:3], 5)[1], before)
    assert not can_map(read_entry(tmp_path / "index"))
    assert open_index(tmp_path / "index", mapped=True).exact


@pytest.mark.parametrize("kind", kind_names())
def test_the_vectors_alone_are_read_from_the_file_of_every_kind(kind: str, tmp_path: Path) -> None:
    vectors_ND = np.random.default_rng(3).standard_normal((200, 12)).astype(np.float32)
    save_index(build_index(spec_of(kind), vectors_ND), tmp_path / "index")
    path = tmp_path / "index" / INDEX_FILE
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    found = mapped_vectors(read_entry(tmp_path / "index"), content, path)
    np.testing.assert_array_equal(found.vectors(), vectors_ND)
    _, expected = open_index(tmp_path / "index").search(vectors_ND[:3], 4, allowed=np.arange(0, 200, 20))
    np.testing.assert_array_equal(found.search(vectors_ND[:3], 4, allowed=np.arange(0, 200, 20))[1], expected)
