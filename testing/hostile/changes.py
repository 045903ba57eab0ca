"""The register of changes to a whole artifact, and the seal that makes a changed one look whole.

Whoever can write an artifact's folder can seal it, so a change gets past every hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLANK = "0" * 64
INNER = "parts/collaborative"  # an artifact inside another
MARKER = "executed-by-an-artifact"  # appears beside the folders where something of theirs was run
Change = Callable[[Path, random.Random], None]
KINDS: dict[str, Change] = {}


class Unfit(Exception):
    """A change that the artifact has no file for."""


def kind(change: Change) -> Change:
    """Register a change under its name."""
    KINDS[change.__name__.strip("_")] = change
    return change


def make(base: Path, target: Path, how: str, rng: random.Random) -> None:
    """Copy a whole artifact and change it as `how` says; raises Unfit."""
    shutil.copytree(base, target)
    try:
        KINDS[how](target, rng)
    except BaseException:
        shutil.rmtree(target)
        raise


def raw_manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def seal(folder: Path, manifest: Any = None) -> None:
    """Write hashes of all files, the index's own and the manifest's checksum, whatever the manifest holds."""
    entry = folder / "index" / "index.json"
    if entry.is_file() and (folder / "index" / "index.faiss").is_file():
        try:
            found = json.loads(entry.read_bytes())
            content = (folder / "index" / "index.faiss").read_bytes()
            found |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            entry.write_text(json.dumps(found))
        except (ValueError, TypeError, RecursionError):
            pass  # it is what was changed
    manifest = raw_manifest(folder) if manifest is None else manifest
    if (folder / INNER / "manifest.json").is_file():
        with contextlib.suppress(ValueError, TypeError, AttributeError, OSError, RecursionError):  # what was changed
            seal(folder / INNER)
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / "manifest.json"
    }
    manifest = {
        **manifest,
        "checksum": BLANK,
        "files": files,
        "version": hashlib.sha256(folder.name.encode()).hexdigest()[:12],
    }
    write_sealed(folder, manifest)


def write_sealed(folder: Path, manifest: Any) -> None:
    """Write a manifest as it is, with a checksum that fits."""
    text = json.dumps({**manifest, "checksum": BLANK}, indent=1)
    mark = '"checksum": "{}"'
    found = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    text = text.replace(mark.format(BLANK), mark.format(found), 1)
    (folder / "manifest.json").write_text(text, encoding="utf-8", newline="\n")


def pick(folder: Path, rng: random.Random, *patterns: str) -> Path:
    """One of the files that fit a pattern; raises Unfit."""
    found = sorted({path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()})
    found = [path for path in found if path.name != "manifest.json"]
    if not found:
        raise Unfit(", ".join(patterns))
    return rng.choice(found)
