"""One process at a time writes a folder, with all that it goes on from when it is started again.

Commands that write a resumable state (checkpoints, parts, measurements) hold the folder that they write by a lock of
the system, which ends with the process however that ends: what a kill leaves is no lock. Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks: NFS without its lock service, Lustre mounted without ``flock``, FUSE."""


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""Errors of file systems without locks: NFS without its lock service, Lustre without ``flock``, some in FUSE."""


class BeingWrittenError(RuntimeError):
    """Another process writes the folder; the message is one sentence."""


@contextlib.contextmanager
def one_writer(target: Path) -> Iterator[None]:
    """Hold ``target``, a folder that may not be there yet, as the only process that writes it.

    The lock is on the file ``.<name>.lock`` beside the folder, links resolved, which is removed on leaving, with the
    empty folders that were made for it; on the folder itself where nothing can be written beside it, as with a volume
    that is mounted in a container. It may not be taken twice, not even in one process. On a file system without locks
    a note on standard error says so.

    Raises:
        BeingWrittenError: another process, which is named, holds it.
    """
    place = Path(os.path.realpath(target))
    missing = [parent for parent in place.parents if not parent.exists()]
    path = place.with_name(f".{place.name}.lock")
    try:
        descriptor = _locked(path, target)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or os.path.lexists(path) or not place.is_dir():
            raise
        path, descriptor = place, _locked_folder(place, target)
    try:
        yield
    finally:
        if path != place:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):  # a folder with something in it
            for parent in missing:
                parent.rmdir()


def _locked(path: Path, target: Path) -> int:
    """The open file of the lock, in a folder that is made where it is missing."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # whoever made the folder has left and taken it away
            continue
        _lock(descriptor, target)
        if _is_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            return descriptor
        os.close(descriptor)  # whoever held it removed the file meanwhile: take the one that is there now


def _locked_folder(place: Path, target: Path) -> int:
    """The open folder, as its own lock."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _lock(descriptor, target)
    return descriptor


def _lock(descriptor: int, target: Path) -> None:
    """Lock an open file or folder, or close it and raise; a file system without locks is passed over with a note."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = _holder(descriptor)
        os.close(descriptor)
        raise BeingWrittenError(
            f"{who} writes {os.path.abspath(target)}; wait until it ends, or name another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(descriptor)
            raise
        line = f"note: no locks on the file system of {target} ({error.strerror}): no other process may write there now"
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
    except BaseException:
        os.close(descriptor)
        raise


def _holder(descriptor: int) -> str:
    """The process that holds a lock, with the number that it wrote into the file; a folder holds none."""
    try:
        number = os.pread(descriptor, 20, 0).decode(errors="replace")
    except IsADirectoryError:
        number = ""
    return f"another process ({number})" if number.isdecimal() else "another process"


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
