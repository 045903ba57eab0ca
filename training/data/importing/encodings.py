"""Text in any encoding into UTF-8, with line feeds at the ends of lines."""

from __future__ import annotations

import codecs

from charset_normalizer import from_bytes

from training.data.report import DataError, Place, shown

SAMPLE = 200_000
TOLERATED = 0.05  # of the lines may be no UTF-8 in a file that is otherwise
_ISOLATED = ["cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp1252", "cp1251"]
_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def to_utf8(name: str, data: bytes, encoding: str | None = None) -> tuple[bytes, str, tuple[Place, ...]]:
    """The content as UTF-8, the encoding it had, and the lines that could not be read (left empty).

    Args:
        name: of the file, for messages.
        data: its content.
        encoding: as Python calls it; None: found from marks, from UTF-8 being valid, or from the bytes themselves.

    Raises:
        DataError: an encoding that is not known, does not fit, or cannot be found out.
    """
    for mark, found in _MARKS.items():
        if encoding is None and data.startswith(mark):
            data, encoding = data[len(mark) :], found
            break
    if encoding is None and _has_nuls(data):
        encoding = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
    broken: tuple[Place, ...] = ()
    if encoding is None and not data.isascii():
        data, encoding, broken = _detected(name, data)
    elif encoding is not None:
        data = _decoded(name, data, encoding)
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
        data = data if b"\n" in data else data.replace(b"\r", b"\n")
    return data, encoding or "utf-8", broken


def _has_nuls(data: bytes) -> bool:
    """Whether every second byte of the start is 0, as in UTF-16 without a mark."""
    start = data[:200]
    return len(start) > 20 and max(start[::2].count(0), start[1::2].count(0)) > len(start) // 3


def _decoded(name: str, data: bytes, encoding: str) -> bytes:
    try:
        return data if encoding == "utf-8" and data.isascii() else data.decode(encoding).encode()
    except LookupError:
        raise DataError(f"encoding {encoding!r} is not known; --encoding takes utf-8, cp932, latin-1, …") from None
    except UnicodeError as error:
        raise DataError(
            f"{name} is not {encoding} ({error}); give another --encoding, or none to find it out"
        ) from None


def _detected(name: str, data: bytes) -> tuple[bytes, str, tuple[Place, ...]]:
    try:
        data.decode()
        return data, "utf-8", ()
    except UnicodeDecodeError:
        pass
    lines = data.split(b"\n") if b"\n" in data else data.split(b"\r")
    wrong = [at for at, line in enumerate(lines) if not line.isascii() and not _is_utf8(line)]
    if len(wrong) <= TOLERATED * len(lines):
        broken = tuple(
            Place(name, at + 1, "", f"is not UTF-8: {shown(lines[at].decode('utf-8', 'replace'))}") for at in wrong
        )
        for at in wrong:
            lines[at] = b""
        return b"\n".join(lines), "utf-8", broken
    sample = b"\n".join(lines[at] for at in wrong)[:SAMPLE]
    best = from_bytes(sample[: sample.rfind(b"\n")] if len(sample) == SAMPLE else sample, cp_isolation=_ISOLATED).best()
    if best is None:
        raise DataError(f"{name} is in an unknown encoding; name it: --encoding cp932 (Shift-JIS), latin-1, …")
    return _decoded(name, data, best.encoding), best.encoding, ()


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
