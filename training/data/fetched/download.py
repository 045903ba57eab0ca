"""Fetch a file over HTTP: with progress, resumed after an interruption, and never used before its checksum is right.

A file is written as `<name>.part` and renamed when whole. A later run asks only for the missing rest (HTTP
`Range`), and `If-Range` with what the server called the version makes it send everything where the file has
changed since.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from training.data.report import DataError

ATTEMPTS = 4
TIMEOUT_SECONDS = 30.0
CHECKSUMS_FILE = "checksums.json"
_PIECE = 1 << 16
_NO_ONE_THERE = (socket.gaierror, ConnectionRefusedError)
_BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True)
class Checksum:
    """A digest the publisher states."""

    kind: Literal["md5", "sha256"]
    digest: str


class DownloadError(DataError):
    """A file could not be fetched, or is not the one that was expected."""


def download(
    url: str,
    path: Path,
    *,
    published: Checksum | None = None,
    console: Console | None = None,
    pause_seconds: float = 1.0,
) -> str:
    """Fetch `url` to `path` unless it is there; returns its SHA-256. Raises `DownloadError`.

    The file is checked against `published`, or else against what the first download of this URL into this
    folder had (kept in `checksums.json`).
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        with _progress(console) as progress:
            _fetch_whole(url, part, progress, pause_seconds)
        _verify(url, part, published)
        os.replace(part, path)
        _forget_version(part)
    return _verify(url, path, published)


def fetch_text(url: str, limit: int = 10_000) -> str | None:
    """The text of a small page; None where the server has none (404). Raises `DownloadError`."""
    try:
        with urllib.request.urlopen(_request(url), timeout=TIMEOUT_SECONDS) as response:
            return bytes(response.read(limit)).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise DownloadError(f"{url} could not be read: {error}") from None
    except _BROKEN as error:
        raise DownloadError(f"{url} could not be read: {_reason(error)}") from None


def md5_in(text: str, url: str) -> Checksum:
    """The MD5 digest a checksum page states."""
    found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
    if not found:
        raise DownloadError(f"{url} states no MD5 checksum; it holds {text[:60]!r}")
    return Checksum("md5", found[0].lower())


def _fetch_whole(url: str, part: Path, progress: Progress, pause_seconds: float) -> None:
    """Fill `part`, going on where a broken connection left it; a few attempts, then `DownloadError`."""
    task = progress.add_task(url.rsplit("/", 1)[-1], total=None)
    for attempt in range(ATTEMPTS):
        try:
            if _fetch_rest(url, part, progress, task):
                return
            failure = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # nothing after what we have: it is of another version, so start again
                part.unlink(missing_ok=True)
                failure = "the server has no such range"
            elif error.code < 500:
                raise DownloadError(f"{url} could not be downloaded: {error}") from None
            else:
                failure = str(error)
        except _BROKEN as error:
            failure = _reason(error)
            if not part.exists() and isinstance(getattr(error, "reason", None), _NO_ONE_THERE):
                break  # no network, or no such server: waiting would only keep the message back
        if attempt + 1 < ATTEMPTS:
            time.sleep(pause_seconds * 2**attempt)
    held = part.stat().st_size if part.exists() else 0
    again = f"; {held:,} bytes are kept, and the same command goes on from there" if held else ""
    raise DownloadError(f"{url} could not be downloaded: {failure}{again}")


def _fetch_rest(url: str, part: Path, progress: Progress, task: TaskID) -> bool:
    """One request for what is missing; True when the file is whole."""
    held = part.stat().st_size if part.exists() else 0
    version = _version_of(part) if held else None
    headers = {"Range": f"bytes={held}-", "If-Range": version} if held and version else {}
    with urllib.request.urlopen(_request(url, headers), timeout=TIMEOUT_SECONDS) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {held}-")
        if not resumed:
            held = 0
            _remember_version(part, response.headers)
        length = response.headers.get("Content-Length")
        total = held + int(length) if length else None
        progress.update(task, total=total, completed=held)
        with part.open("ab" if resumed else "wb") as file:
            while piece := response.read(_PIECE):
                file.write(piece)
                held += len(piece)
                progress.update(task, completed=held)
            file.flush()
            os.fsync(file.fileno())
    return total is None or held == total


def _verify(url: str, path: Path, published: Checksum | None) -> str:
    """The file's SHA-256, after it was compared; a wrong file is removed."""
    sha256 = _digest(path, "sha256")
    if published:
        found = _digest(path, published.kind)
        if found != published.digest:
            path.unlink()
            raise DownloadError(
                f"{path.name} from {url} has {published.kind} {found}; its publisher states {published.digest}. "
                "The file was removed; try again"
            )
        return sha256
    ledger = path.parent / CHECKSUMS_FILE
    known: dict[str, str] = json.loads(ledger.read_text(encoding="utf-8")) if ledger.exists() else {}
    if known.setdefault(url, sha256) != sha256:
        path.unlink()
        raise DownloadError(
            f"{path.name} from {url} has sha256 {sha256}; the first download had {known[url]}. The file was removed. "
            f"If the publisher changed it on purpose, take the line out of {ledger} and try again"
        )
    unfinished = ledger.with_name(CHECKSUMS_FILE + ".part")
    unfinished.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, ledger)
    return sha256


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _request(url: str, headers: dict[str, str] | None = None) -> urllib.request.Request:
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is no http address")
    fixed = {"User-Agent": "anyo", "Accept-Encoding": "identity"}
    return urllib.request.Request(url, headers={**fixed, **(headers or {})})


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _version_of(part: Path) -> str | None:
    path = _version_file(part)
    return path.read_text(encoding="utf-8") or None if path.exists() else None


def _remember_version(part: Path, headers: Any) -> None:
    etag = headers.get("ETag") or ""
    version = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or ""
    _version_file(part).write_text(version, encoding="utf-8")


def _forget_version(part: Path) -> None:
    _version_file(part).unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
