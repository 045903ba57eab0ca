"""Writing a folder so that a crash leaves the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from modeling.artifact.targets import Kind, check_target

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replaced_folder(target: Path, kind: Kind = "artifact") -> Iterator[Path]:
    """Yield an empty folder beside ``target``; on leaving without an error it takes ``target``'s place.

    Raises `modeling.artifact.targets.TargetError` for a target that is none of ours to replace; ``kind`` says what
    may be there.

    Everything is flushed to the disk before the rename. Where ``target`` exists, the two are exchanged in one system
    call (Linux), so there is no moment without an artifact at that name.
    """
    check_target(target, kind=kind)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    work = target.with_name(f".{target.name}.writing-{os.getpid()}")
    work.mkdir()
    try:
        yield work
        for path in [*work.rglob("*"), work]:
            _flush(path)
        if target.exists():
            _exchange(work, target)
        else:
            work.rename(target)
        _flush(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Work folders of writers that no longer live."""
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.writing-*"):
        owner = leftover.name.rsplit("-", 1)[-1]
        if owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(work: Path, target: Path) -> None:
    """Swap two folders atomically; elsewhere than on Linux, in two renames with the old one kept until the end."""
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    if hasattr(library, "renameat2"):
        done = library.renameat2(
            _AT_FDCWD, os.fsencode(work), _AT_FDCWD, os.fsencode(target), ctypes.c_uint(_RENAME_EXCHANGE)
        )
        if done == 0:
            return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    target.rename(old)
    work.rename(target)
    shutil.rmtree(old, ignore_errors=True)
