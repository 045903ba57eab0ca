"""The hash of a folder's weights, and a note of it beside them.

Hashing half a gigabyte at every start takes a second, and reads layers that are not used. A folder that was made
here notes the hash with the sizes and times of its files; where one of them differs, everything is hashed again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from modeling.artifact.verified import Files

NOTE = "weights.sha256.json"


def weights_sha256(folder: Path) -> str:
    """Of the safetensors files of a folder, names included."""
    if (noted := noted_sha256(Files(folder))) is not None:
        return noted
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def note_sha256(folder: Path) -> None:
    """Write the note of a folder whose weights are complete."""
    record = {
        "sha256": weights_sha256(folder),
        "files": {path.name: _state(path) for path in folder.glob("*.safetensors")},
    }
    (folder / NOTE).write_text(json.dumps(record, indent=2), encoding="utf-8")


def noted_sha256(files: Files) -> str | None:
    """The hash that was noted beside these weights; None where none was, or a file has changed since.

    In an artifact nothing is taken on trust: its files are hashed.
    """
    if files.sealed or NOTE not in files:
        return None
    record = files.json(NOTE)
    now = {name: _state(files.folder / name) for name in files.names() if name.endswith(".safetensors")}
    return str(record["sha256"]) if isinstance(record, dict) and record.get("files") == now else None


def _state(path: Path) -> list[int]:
    """Size and time of the last change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
