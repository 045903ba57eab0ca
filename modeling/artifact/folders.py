"""The one way of walking an artifact's folder: links are followed, and only regular files are files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MOST_FILES = 10_000


class ArtifactError(ValueError):
    """An artifact folder is incomplete, altered, or from another version; the message is one sentence."""


class FolderError(ArtifactError):
    """A folder holds what an artifact cannot hold."""


def one_line(error: object, longest: int = 300) -> str:
    """The message of an error on one line, cut to a readable length, without characters that steer a terminal."""
    text = " ".join(str(error).split())[:longest]
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def files_in(folder: Path) -> dict[str, Path]:
    """The regular files below ``folder``: their names inside it, with "/", and their paths.

    Links to files and to folders are followed. Names that begin with ".." are left out: they hold the versions of a
    Kubernetes volume, to which the plain names link.

    Raises:
        FolderError: a link leads back to a folder above it, something is neither file nor folder, or there are more
            than ``MOST_FILES``.
    """
    found: dict[str, Path] = {}
    _walk(folder, "", (), found)
    return found


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], found: dict[str, Path]) -> None:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise FolderError(f"{prefix.rstrip('/')!r} is a link to a folder that it lies in")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".."))
    for name in names:
        path = folder / name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise FolderError(f"{prefix + name!r} cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(mode):
            _walk(path, f"{prefix}{name}/", (*above, here), found)
        elif not stat.S_ISREG(mode):
            raise FolderError(f"{prefix + name!r} is neither a file nor a folder")
        else:
            found[prefix + name] = path
        if len(found) > MOST_FILES:
            raise FolderError(f"there are more than {MOST_FILES} files")
