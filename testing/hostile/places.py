"""Links, pipes and folders where files are expected."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.hostile.changes import KINDS, kind, pick, seal


def in_place(name: str, put: Callable[[Path], Any], *, beside: bool = False) -> None:
    """Something else where a file was, or beside all files."""

    def apply(folder: Path, rng: random.Random) -> None:
        path = folder / "extra" if beside else pick(folder, rng, "*")
        if not beside:
            path.unlink()
        put(path)

    KINDS[name] = apply


in_place("link-outside", lambda path: path.symlink_to("/etc/passwd"))
in_place("link-zeros", lambda path: path.symlink_to("/dev/zero"))
in_place("link-nowhere", lambda path: path.symlink_to("nowhere"))
in_place("link-to-itself", lambda path: path.symlink_to(path.name))
in_place("link-loop", lambda path: path.symlink_to("."), beside=True)
in_place("link-to-root", lambda path: path.symlink_to("/"), beside=True)
in_place("pipe", os.mkfifo)
in_place("pipe-beside", os.mkfifo, beside=True)
in_place("folder", Path.mkdir)
in_place("name-control", lambda path: path.with_name("a\nb\x1b[2J").write_bytes(b""), beside=True)
in_place("name-bytes", lambda path: open(os.fsencode(path) + b"\xff\xfe", "wb").close(), beside=True)


@kind
def link_sealed(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng, "*")
    path.unlink()
    path.symlink_to("/etc/passwd")
    seal(folder)


@kind
def manifest_pipe(folder: Path, rng: random.Random) -> None:
    (folder / "manifest.json").unlink()
    rng.choice((os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")))(folder / "manifest.json")


@kind
def files_beside(folder: Path, rng: random.Random) -> None:
    for number in range(10_001):
        (folder / f"f{number}").touch()


@kind
def folders_deep(folder: Path, rng: random.Random) -> None:
    place = folder
    for _ in range(120):
        place /= "d" * 20
    place.mkdir(parents=True)
    (place / "f").touch()
    seal(folder)
