"""One process at a time writes a folder, with all that it goes on from when it is started again.

Commands that write a resumable state (checkpoints, parts, measurements) hold the folder that they write by a lock of
the system, which ends with the process however that ends: what a kill leaves is no lock. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class BeingWrittenError(RuntimeError):
    """Another process writes the folder; the message is one sentence."""


@contextlib.contextmanager
def one_writer(target: Path) -> Iterator[None]:
    """Hold ``target``, a folder that may not be there yet, as the only process that writes it.

    The lock is on the file ``.<name>.lock`` beside the folder, which is removed on leaving. It may not be taken twice,
    not even in one process.

    Raises:
        BeingWrittenError: another process, which is named, holds it.
    """
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    path = target.with_name(f".{target.name}.lock")
    descriptor = _locked(path, target)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _locked(path: Path, target: Path) -> int:
    """The open file of the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BlockingIOError:
            number = os.pread(descriptor, 20, 0).decode(errors="replace")
            os.close(descriptor)
            who = f"another process ({number})" if number.isdecimal() else "another process"
            raise BeingWrittenError(f"{who} writes {target}; wait until it ends, or name another folder") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever held it removed the file meanwhile: take the one that is there now


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
