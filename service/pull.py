"""Brings an artifact here from a folder, an `http(s)://` address or `s3://bucket/prefix`, checked file by file.

`manifest.json` names every file with its sha256. Everything is fetched into a hidden folder beside the target and
compared with it; only a complete artifact takes the target's place, in one exchange of names. Whoever can write the
source decides what is served, so `sha256`, where given, pins the manifest and with it every file.
"""

from __future__ import annotations

import hashlib
import importlib
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit

from modeling.atomic import replaced_folder
from modeling.manifest import MANIFEST, AnyManifest, ArtifactError, check_files, file_sha256, read_any_manifest

BLOCK = 1 << 20
LARGEST_MANIFEST = 64 << 20
TIMEOUT_S = 60.0  # without a single byte

Open = Callable[[str], AbstractContextManager[IO[bytes]]]


class PullError(Exception):
    """An artifact cannot be fetched, or is not what its manifest says; the message is one sentence."""


def pull(
    source: str, target: Path, *, sha256: str | None = None, note: Callable[[str], None] = lambda line: None
) -> str:
    """Fetch the artifact at `source` into `target` and return its version.

    What `target` holds already under the same hash is not fetched again. Raises PullError; `target` is then as before.
    """
    open_file = _opener(source)
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise PullError(f"{target} exists and holds no artifact; name a folder that may be replaced, or a new one")
    try:
        with replaced_folder(target) as work:
            _fetch(open_file, source, MANIFEST, work / MANIFEST, limit=LARGEST_MANIFEST, expected=sha256)
            manifest = read_any_manifest(work)
            _check_names(manifest)
            for number, (name, expected) in enumerate(sorted(manifest.files.items()), 1):
                note(f"{number}/{len(manifest.files)} {name}")
                _bring(open_file, source, name, work, target, expected)
            check_files(work, manifest)
    except ArtifactError as error:
        raise PullError(f"{source}: {error}") from error
    except OSError as error:
        raise PullError(f"{target} cannot be written: {error}") from error
    return manifest.version


def _bring(open_file: Open, source: str, name: str, work: Path, target: Path, expected: str) -> None:
    place, there = work / name, target / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if there.is_file() and file_sha256(there) == expected:
        shutil.copyfile(there, place)
    else:
        _fetch(open_file, source, name, place, expected=expected)


def _fetch(
    open_file: Open, source: str, name: str, place: Path, *, limit: int | None = None, expected: str | None = None
) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with open_file(name) as stream, place.open("wb") as file:
            for block in _blocks(stream, source, name):
                size += len(block)
                if limit is not None and size > limit:
                    raise PullError(f"{name} at {source} is larger than {limit} bytes")
                digest.update(block)
                file.write(block)
    except FileNotFoundError as error:
        raise PullError(f"there is no {name} at {source}") from error
    if expected is not None and digest.hexdigest() != expected.lower():
        raise PullError(
            f"{name} at {source} has sha256 {digest.hexdigest()[:12]}… ({size} bytes), expected {expected[:12]}…"
        )


def _blocks(stream: IO[bytes], source: str, name: str) -> Iterator[bytes]:
    try:
        while block := stream.read(BLOCK):
            yield block
    except Exception as error:  # each way of fetching has errors of its own
        raise PullError(f"{name} at {source} broke off: {error!r}") from error


def _check_names(manifest: AnyManifest) -> None:
    """A manifest from elsewhere must not name a file outside its folder."""
    for name in manifest.files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
            raise PullError(f"{MANIFEST} names the file {name!r}, which is not a plain path inside the artifact")


def _opener(source: str) -> Open:
    scheme = urlsplit(source).scheme.lower()
    if scheme in ("http", "https"):
        return lambda name: _open_http(f"{source.rstrip('/')}/{quote(name)}")
    if scheme == "s3":
        return _open_s3(source)
    if scheme and "://" in source:
        raise PullError(f"{source!r} begins with {scheme}://; known are http://, https://, s3:// and a folder")
    folder = Path(source)
    if not folder.is_dir():
        raise PullError(f"{source} is no folder, and begins with none of http://, https://, s3://")
    return lambda name: (folder / name).open("rb")


class _SameKind(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http(s) only, and never from https back to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise PullError(f"{req.full_url} redirects to {newurl}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_http(url: str) -> AbstractContextManager[IO[bytes]]:
    try:
        stream: IO[bytes] = urllib.request.build_opener(_SameKind).open(url, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise PullError(f"{url} answers {error.code} {error.reason}") from error
    except OSError as error:
        raise PullError(f"{url} cannot be reached: {error}") from error
    return closing(stream)


def _open_s3(source: str) -> Open:
    try:
        boto3: Any = importlib.import_module("boto3")
    except ImportError as error:
        raise PullError(f"{source} needs boto3, which is not installed: pip install 'anyo[s3]'") from error
    bucket, prefix = urlsplit(source).netloc, urlsplit(source).path.strip("/")
    client = boto3.client("s3")

    def open_file(name: str) -> AbstractContextManager[IO[bytes]]:
        try:
            body: IO[bytes] = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}".lstrip("/"))["Body"]
        except Exception as error:  # credentials, network, or no such key: botocore has a class for each
            raise PullError(f"{name} at {source} cannot be read: {error}") from error
        return closing(body)

    return open_file
