"""Files, folders and archives into named contents. Compression is told by the first bytes, not by the name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

import polars as pl

from training.data.report import DataError

Content = tuple[str, bytes]
_PASSED_OVER = {".md", ".py", ".ipynb", ".html", ".pdf", ".png", ".jpg", ".jpeg", ".svg", ".sh", ".yaml", ".yml"}
_ABOUT = ("readme", "license", "licence", "dataset_info.json", "dataset_dict.json", "state.json", "checksums")
_TAR_AT = 257


def contents(sources: Iterable[Path]) -> Iterator[Content]:
    """The name and content of every file that may hold data, unpacked, folders and archives included.

    Raises:
        DataError: a source that is not there, or cannot be unpacked.
    """
    for source in sources:
        if source.is_dir():
            files = sorted(path for path in source.rglob("*") if path.is_file() and _wanted(path.relative_to(source)))
            if not files:
                raise DataError(f"{source} is a folder without a file of data; name the files or the folder with them")
            for path in files:
                yield from _unpacked(path.relative_to(source).as_posix(), path.read_bytes())
        elif source.is_file():
            yield from _unpacked(source.name, source.read_bytes())
        else:
            raise DataError(f"{source} is not there; name files or folders that exist")


def _wanted(path: Path | PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and path.suffix.lower() not in _PASSED_OVER and not path.name.lower().startswith(_ABOUT)


def _unpacked(name: str, data: bytes) -> Iterator[Content]:
    if data.startswith(b"PK\x03\x04") and not _is_workbook(name, data):
        yield from _members_of_zip(name, data)
        return
    if data[_TAR_AT : _TAR_AT + 5] == b"ustar":
        yield from _members_of_tar(name, data)
        return
    for magic, unpack in _COMPRESSED.items():
        if data.startswith(magic):
            try:
                inner = unpack(data)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, pl.exceptions.PolarsError) as error:
                raise DataError(f"{name} cannot be unpacked ({error}); is the file complete?") from None
            yield from _unpacked(name, inner)
            return
    yield name, data


def _is_workbook(name: str, data: bytes) -> bool:
    """Whether a zip holds a workbook of Excel, which is refused by its reader and not taken apart."""
    if name.lower().endswith((".xlsx", ".xlsm", ".xls")):
        return True
    try:
        return "[Content_Types].xml" in zipfile.ZipFile(io.BytesIO(data)).namelist()
    except zipfile.BadZipFile:
        return False


def _members_of_zip(name: str, data: bytes) -> Iterator[Content]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                if not member.is_dir() and _wanted(PurePosixPath(member.filename)):
                    yield from _unpacked(member.filename, archive.read(member))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
        raise DataError(f"{name} cannot be unpacked ({error}); unpack it and name the files") from None


def _members_of_tar(name: str, data: bytes) -> Iterator[Content]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and _wanted(PurePosixPath(member.name)):
                    yield from _unpacked(member.name, file.read())
    except tarfile.TarError as error:
        raise DataError(f"{name} cannot be unpacked ({error}); unpack it and name the files") from None


def _zstandard(data: bytes) -> bytes:
    """Text in UTF-8 out of Zstandard, which polars unpacks where it reads lines."""
    lines = pl.read_csv(data, has_header=False, separator="\x01", quote_char=None, infer_schema=False)
    return "\n".join(lines.to_series().fill_null("")).encode() + b"\n"


_COMPRESSED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
    b"\x28\xb5\x2f\xfd": _zstandard,
}
