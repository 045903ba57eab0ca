"""An index on disk: a file of its kind, and ``index.json``, which says what the former must be.

`index.json` carries no date and no machine: the same vectors give the same bytes, and the artifact's own hash
of these files stays valid when an index is built again.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from index.base import UNFINISHED, Content, FolderEntry, IndexFolderError, IndexSpec, StoredIndex
from index.ivf.cells import MAPPED_BLOCK
from index.ivf.on_disk import DiskVectors
from index.kinds import index_class
from index.spec import spec_of

INDEX_FILE = "index.faiss"
ENTRY_FILE = "index.json"
METRIC = "inner_product"
SCHEMA = 2
"""Of what is written. Before 2 there was exact search alone, called ``"factory": "Flat"``."""
READABLE = (1, 2)
FLOAT_BYTES = 4
HASHED = 16 << 20  # bytes of a mapped file that are hashed at a time, a multiple of the page size
FIELDS: dict[str, tuple[type, ...]] = {
    "metric": (str,), "size": (int,), "dim": (int,), "recall_at_10": (int, float), "bytes": (int,), "sha256": (str,),
}  # fmt: skip


def check_index_target(folder: Path) -> None:
    """Raise `IndexFolderError` unless an index may be written to `folder`: it is new, empty, or an index folder."""
    if folder.is_symlink():
        raise IndexFolderError(f"{folder} is a link to {os.readlink(folder)}; name the folder itself")
    if folder.exists() and not folder.is_dir():
        raise IndexFolderError(f"{folder} is a file; an index is a folder")
    if (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} - {UNFINISHED}
        and not (folder / ENTRY_FILE).is_file()
    ):
        raise IndexFolderError(f"{folder} is not empty and holds no {ENTRY_FILE}; name a new or empty folder")


def save_index(index: StoredIndex, folder: Path) -> FolderEntry:
    """Write both files, each under another name first; returns the entry."""
    folder.mkdir(parents=True, exist_ok=True)
    index.write(unfinished_file(folder))
    return put_in_place(index, folder)


def unfinished_file(folder: Path) -> Path:
    """The name of the file of an index until its entry is known."""
    return folder / (INDEX_FILE + ".part")


def map_unfinished(path: Path, spec: IndexSpec, size: int, dim: int) -> StoredIndex:
    """The index in a file that this process has written, with its item vectors left there; of a kind that maps."""
    entry = FolderEntry(spec, METRIC, size, dim, recall_at_10=0.0, bytes=path.stat().st_size)
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _settled(index_class(spec.kind).parse(content, path, entry), content)


def put_in_place(index: StoredIndex, folder: Path) -> FolderEntry:
    """Give the unfinished file of an index its name and write its entry, which is returned."""
    unfinished = unfinished_file(folder)
    entry = FolderEntry(
        spec=index.spec,
        metric=METRIC,
        size=index.size,
        dim=index.dim,
        recall_at_10=index.recall_at_10,
        recall_queries=index.recall_queries,
        bytes=unfinished.stat().st_size,
        sha256=sha256_of(unfinished),
    )
    _sync(unfinished)
    unfinished_entry = folder / (ENTRY_FILE + ".part")
    unfinished_entry.write_text(_text(entry), encoding="utf-8")
    _sync(unfinished_entry)
    # A crash between the two renames leaves a pair that does not match, which opening refuses.
    os.replace(unfinished, folder / INDEX_FILE)
    os.replace(unfinished_entry, folder / ENTRY_FILE)
    return entry


def open_index(folder: Path | str, *, mapped: bool = False) -> StoredIndex:
    """The index saved in ``folder``, whatever its kind.

    Args:
        folder: with the two files.
        mapped: leave the item vectors on disk, where the kind can (`can_map`): the file is mapped, and must not be
            written to as long as the index is used. Replacing it by another file is no harm.

    Raises:
        IndexFolderError: one sentence.
    """
    folder = Path(folder)
    entry, path = read_entry(folder), folder / INDEX_FILE
    if not path.is_file():
        raise IndexFolderError(f"{path} is missing, though {ENTRY_FILE} describes it")
    if path.stat().st_size != entry.bytes:
        raise IndexFolderError(f"{path} holds {path.stat().st_size:,} bytes; {ENTRY_FILE} says {entry.bytes:,}")
    if mapped and can_map(entry):
        with path.open("rb") as file:
            return _parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path, entry)
    return _parse(path.read_bytes(), path, entry)


def can_map(entry: FolderEntry) -> bool:
    """Whether an index of this kind leaves its item vectors in a mapped file."""
    return index_class(entry.spec.kind).maps


def parse_index(folder: Path, entry: bytes, content: Content) -> StoredIndex:
    """The index in the bytes of both files, which were read from ``folder`` before, or mapped (only where `can_map`);
    raises as `open_index`."""
    return _parse(content, folder / INDEX_FILE, parse_entry(entry, folder / ENTRY_FILE))


def mapped_vectors(entry: FolderEntry, content: mmap.mmap, path: Path) -> DiskVectors:
    """Exact search over the item vectors of an index alone, in its mapped file, whose hash has been compared: the file
    of every kind ends with them. Raises `IndexFolderError`."""
    length = entry.size * entry.dim
    if length * FLOAT_BYTES > len(content):
        raise IndexFolderError(
            f"{path} holds {len(content):,} bytes; {ENTRY_FILE} says {entry.size:,} vectors of width {entry.dim}"
        )
    vectors_ND = np.frombuffer(content, "<f4", length, len(content) - length * FLOAT_BYTES).reshape(entry.size, -1)
    return DiskVectors.over(vectors_ND, content, MAPPED_BLOCK // (FLOAT_BYTES * entry.dim))


def _parse(content: Content, path: Path, entry: FolderEntry) -> StoredIndex:
    """The hash is checked before the kind reads the bytes."""
    if len(content) != entry.bytes:
        raise IndexFolderError(f"{path} holds {len(content):,} bytes; {ENTRY_FILE} says {entry.bytes:,}")
    found = _hash(content)
    if found != entry.sha256:
        raise IndexFolderError(f"{path} has sha256 {found[:12]}…; {ENTRY_FILE} says {entry.sha256[:12]}…")
    index = index_class(entry.spec.kind).parse(content, path, entry)
    index.recall_at_10, index.recall_queries = entry.recall_at_10, entry.recall_queries
    return _settled(index, content) if isinstance(content, mmap.mmap) else index


def _settled(index: StoredIndex, content: mmap.mmap) -> StoredIndex:
    """The index, the pages of whose file are no longer in memory."""
    _release(content, 0, len(content))
    content.madvise(mmap.MADV_RANDOM)  # a search reads single vectors
    return index


def _hash(content: Content) -> str:
    """The SHA-256 of a file's bytes; of a mapped file no more than a block stays in this process's memory."""
    digest = hashlib.sha256()
    with memoryview(content) as whole:
        for first in range(0, len(whole), HASHED):
            digest.update(whole[first : first + HASHED])
            if isinstance(content, mmap.mmap):
                _release(content, first, min(HASHED, len(whole) - first))
    return digest.hexdigest()


def _release(content: mmap.mmap, first: int, length: int) -> None:
    """Let go of pages of a mapped file, which are read again where they are needed."""
    content.madvise(mmap.MADV_DONTNEED, first, length)


def read_entry(folder: Path) -> FolderEntry:
    """`index.json` of a folder, checked field by field; raises `IndexFolderError`."""
    path = folder / ENTRY_FILE
    try:
        return parse_entry(path.read_bytes(), path)
    except FileNotFoundError:
        raise IndexFolderError(f"{folder} holds no {ENTRY_FILE}, so it is not an index folder") from None
    except OSError as error:
        raise IndexFolderError(f"{path} cannot be read: {error}") from None


def parse_entry(content: bytes, path: Path) -> FolderEntry:
    """The entry that `content` holds, which was read from `path`; raises `IndexFolderError`."""
    try:
        data = json.loads(content)
    except RecursionError:
        raise IndexFolderError(f"{path} is nested too deeply") from None
    except ValueError as error:
        raise IndexFolderError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise IndexFolderError(f"{path} holds a {type(data).__name__}; expected an object")
    schema = data.get("schema")
    if schema not in READABLE or isinstance(schema, bool):
        raise IndexFolderError(
            f"{path} has schema {str(schema)[:40]}; this version reads {' and '.join(map(str, READABLE))}"
        )
    for name, kinds in FIELDS.items():
        value = data.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise IndexFolderError(f"{path} has {name} = {value!r}; expected {' or '.join(k.__name__ for k in kinds)}")
    if data["metric"] != METRIC:
        raise IndexFolderError(f"{path} has metric {data['metric']!r}; scores here are inner products ({METRIC!r})")
    if not 0 <= data["recall_at_10"] <= 1:
        raise IndexFolderError(f"{path} has recall_at_10 = {data['recall_at_10']!r}; a share lies between 0 and 1")
    queries = str(data.get("recall_queries", "none"))[:40]
    return FolderEntry(_spec(data, path), recall_queries=queries, **{name: data[name] for name in FIELDS})


def _spec(data: dict[str, Any], path: Path) -> IndexSpec:
    if data["schema"] == 1:
        if data.get("factory") != "Flat":
            raise IndexFolderError(f"{path} has factory {data.get('factory')!r}; schema 1 has Flat alone")
        return spec_of("flat")
    parameters = data.get("parameters")
    if not isinstance(parameters, dict):
        raise IndexFolderError(f"{path} has parameters = {parameters!r:.80}; expected an object")
    try:
        return spec_of(str(data.get("kind")), parameters)
    except ValueError as error:
        raise IndexFolderError(f"{path}: {error}") from None


def _text(entry: FolderEntry) -> str:
    data = {
        "schema": SCHEMA,
        "kind": entry.spec.kind,
        "parameters": entry.spec.parameters,
        "recall_queries": entry.recall_queries,
        **{name: getattr(entry, name) for name in FIELDS},
    }
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
