"""What an index looks like on disk: `index.faiss`, and `index.json` which says what the former must be.

`index.json` carries no date and no machine: the same vectors give the same bytes, and the artifact's own hash
of these files stays valid when an index is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index.base import IndexFolderError

INDEX_FILE = "index.faiss"
ENTRY_FILE = "index.json"
SCHEMA = 1
HEADER = struct.Struct("<4siqqq?iq")  # kind, dim, size, two unused, trained, metric, numbers that follow
FLAT_KINDS = (b"IxFI", b"IxF2", b"IxFl")


@dataclass(frozen=True)
class FolderEntry:
    """The content of `index.json`; `recall_at_10` is measured against exact search."""

    factory: str
    metric: str
    size: int
    dim: int
    recall_at_10: float
    schema: int = SCHEMA
    bytes: int = 0
    sha256: str = ""


def check_index_target(folder: Path) -> None:
    """Raise `IndexFolderError` unless an index may be written to `folder`: it is new, empty, or an index folder."""
    if folder.is_symlink():
        raise IndexFolderError(f"{folder} is a link to {os.readlink(folder)}; name the folder itself")
    if folder.exists() and not folder.is_dir():
        raise IndexFolderError(f"{folder} is a file; an index is a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ENTRY_FILE).is_file():
        raise IndexFolderError(f"{folder} is not empty and holds no {ENTRY_FILE}; name a new or empty folder")


def write_index_folder(folder: Path, faiss_index: Any, entry: FolderEntry) -> FolderEntry:
    """Write both files, each under another name first; returns the entry with bytes and hash filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / (INDEX_FILE + ".part")
    faiss.write_index(faiss_index, str(unfinished))
    measured = {**asdict(entry), "bytes": unfinished.stat().st_size, "sha256": sha256_of(unfinished)}
    _sync(unfinished)
    unfinished_entry = folder / (ENTRY_FILE + ".part")
    unfinished_entry.write_text(json.dumps(measured, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _sync(unfinished_entry)
    # A crash between the two renames leaves a pair that does not match, which opening refuses.
    os.replace(unfinished, folder / INDEX_FILE)
    os.replace(unfinished_entry, folder / ENTRY_FILE)
    return FolderEntry(**measured)


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
    if data.get("schema") != SCHEMA:
        raise IndexFolderError(f"{path} has schema {data.get('schema')!r}; this version reads {SCHEMA}")
    wanted: dict[str, tuple[type, ...]] = {
        "factory": (str,), "metric": (str,), "size": (int,), "dim": (int,), "recall_at_10": (int, float),
        "bytes": (int,), "sha256": (str,),
    }  # fmt: skip
    for name, kinds in wanted.items():
        value = data.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise IndexFolderError(f"{path} has {name} = {value!r}; expected {' or '.join(k.__name__ for k in kinds)}")
    return FolderEntry(**{field.name: data[field.name] for field in fields(FolderEntry)})


def read_index_file(folder: Path, entry: FolderEntry, kind: type) -> Any:
    """`index.faiss` as a faiss index of `kind`; see `parse_index`."""
    path = folder / INDEX_FILE
    if not path.is_file():
        raise IndexFolderError(f"{path} is missing, though {ENTRY_FILE} describes it")
    if path.stat().st_size != entry.bytes:
        raise IndexFolderError(f"{path} holds {path.stat().st_size:,} bytes; {ENTRY_FILE} says {entry.bytes:,}")
    return parse_index(path.read_bytes(), path, entry, kind)


def parse_index(content: bytes, path: Path, entry: FolderEntry, kind: type) -> Any:
    """The faiss index in bytes that were read from `path`; its hash is checked before, its numbers after."""
    if len(content) != entry.bytes:
        raise IndexFolderError(f"{path} holds {len(content):,} bytes; {ENTRY_FILE} says {entry.bytes:,}")
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise IndexFolderError(f"{path} has sha256 {found[:12]}…; {ENTRY_FILE} says {entry.sha256[:12]}…")
    _check_header(content, path, entry)
    try:
        index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    except (RuntimeError, MemoryError) as error:
        raise IndexFolderError(f"{path} is not a faiss index: {str(error).splitlines()[0]}") from None
    if not isinstance(index, kind):
        raise IndexFolderError(f"{path} holds a {type(index).__name__}; {ENTRY_FILE} says {entry.factory}")
    metric = {faiss.METRIC_INNER_PRODUCT: "inner_product", faiss.METRIC_L2: "l2"}.get(index.metric_type, "another")
    for name, held, said in (
        ("size", index.ntotal, entry.size), ("dim", index.d, entry.dim), ("metric", metric, entry.metric),
    ):  # fmt: skip
        if held != said:
            raise IndexFolderError(f"{path} has {name} {held}; {ENTRY_FILE} says {said}")
    return index


def _check_header(content: bytes, path: Path, entry: FolderEntry) -> None:
    """Before faiss reads it: the numbers by which faiss allocates are those of the entry and of the file's size."""
    if len(content) < HEADER.size:
        raise IndexFolderError(f"{path} is not a faiss index: it holds {len(content)} bytes")
    kind, dim, size, *_, held = HEADER.unpack_from(content)
    if kind not in FLAT_KINDS:
        raise IndexFolderError(f"{path} holds an index of kind {kind!r}; {ENTRY_FILE} says {entry.factory}")
    for name, found, said in (("dim", dim, entry.dim), ("size", size, entry.size)):
        if found != said:
            raise IndexFolderError(f"{path} has {name} {found}; {ENTRY_FILE} says {said}")
    if held != dim * size or len(content) != HEADER.size + 4 * held:
        raise IndexFolderError(f"{path} is not a faiss index: {len(content):,} bytes for {size:,} vectors of {dim}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
