"""Brings an artifact here from a folder, an `http(s)://` address, `s3://bucket/prefix` or `hf://OWNER/NAME`, checked
file by file.

`manifest.json` names every file with its sha256. Everything is fetched into a hidden folder beside the target and
compared with it; only a complete artifact takes the target's place, in one exchange of names. Whoever can write the
source decides what is served, so `sha256`, where given, pins the manifest and with it every file.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import importlib
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from modeling.artifact.atomic import replaced_folder
from modeling.artifact.manifest import MANIFEST, ArtifactError, check_files, file_sha256, one_line, read_manifest
from service.settings.addresses import AddressError, redacted, split

BLOCK = 1 << 20
LARGEST_MANIFEST = 64 << 20
LARGEST_ARTIFACT = 64 << 30  # bytes of all files together
LONGEST_S = 3600.0
TIMEOUT_S = 60.0  # without a single byte

Open = Callable[[str], AbstractContextManager[IO[bytes]]]


class PullError(Exception):
    """An artifact cannot be fetched, or is not what its manifest says; the message is one sentence."""


class _Budget:
    """The rest of the limits of a download, in bytes and in seconds."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self._bytes, self._most, self._seconds = 0, most_bytes, seconds
        self._end = time.monotonic() + seconds

    def take(self, size: int) -> None:
        """Count bytes that have come; raises PullError."""
        self._bytes += size
        if self._bytes > self._most:
            raise PullError(f"the artifact is larger than {self._most} bytes (--max-bytes)")
        if time.monotonic() > self._end:
            raise PullError(f"fetching takes longer than {self._seconds:g} s (--seconds)")


def pull(
    source: str,
    target: Path,
    *,
    sha256: str | None = None,
    note: Callable[[str], None] = lambda line: None,
    most_bytes: int = LARGEST_ARTIFACT,
    seconds: float = LONGEST_S,
) -> str:
    """Fetch the artifact at `source` into `target` and return its version, within so many bytes and seconds.

    What `target` holds already under the same hash is not fetched again. Raises PullError; `target` is then as before.
    """
    open_file, place, budget = _opener(source), shown(source), _Budget(most_bytes, seconds)
    if target.exists() and not (target / MANIFEST).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise PullError(f"{target} exists and holds no artifact; name a folder that may be replaced, or a new one")
    try:
        with replaced_folder(target) as work:
            _fetch(open_file, place, MANIFEST, work / MANIFEST, budget, limit=LARGEST_MANIFEST, expected=sha256)
            manifest = read_manifest(work)
            for number, (name, expected) in enumerate(sorted(manifest.files.items()), 1):
                note(f"{number}/{len(manifest.files)} {name}")
                there = target / name
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                if there.is_file() and file_sha256(there) == expected:
                    shutil.copyfile(there, work / name)
                else:
                    _fetch(open_file, place, name, work / name, budget, expected=expected)
            check_files(work, manifest)
    except ArtifactError as error:
        raise PullError(f"{place}: {error}") from error
    except OSError as error:
        raise PullError(f"{target} cannot be written: {error}") from error
    return manifest.version


def shown(source: str) -> str:
    """Return a source as it may be printed, on one line: without user, password, query and fragment."""
    address, _, fragment = source.partition("#")
    return one_line(redacted(source if "@" in fragment else address))


def _fetch(
    open_file: Open,
    source: str,
    name: str,
    place: Path,
    budget: _Budget,
    *,
    limit: int | None = None,
    expected: str | None = None,
) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with open_file(name) as stream, place.open("wb") as file:
            for block in _blocks(stream, source, name):
                size += len(block)
                if limit is not None and size > limit:
                    raise PullError(f"{name} at {source} is larger than {limit} bytes")
                budget.take(len(block))
                digest.update(block)
                file.write(block)
    except FileNotFoundError as error:
        raise PullError(f"there is no {name} at {source}") from error
    if expected is not None and digest.hexdigest() != expected.lower():
        raise PullError(
            f"{name} at {source} has sha256 {digest.hexdigest()[:12]}… ({size} bytes), expected {expected[:12]}…"
        )


def _blocks(stream: IO[bytes], source: str, name: str) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)  # what has come, so that a slow source meets the time limit
    try:
        while block := read(BLOCK):
            yield block
    except PullError:
        raise
    except Exception as error:  # each way of fetching has errors of its own
        raise PullError(f"{name} at {source} broke off: {one_line(type(error).__name__)}") from error


def _opener(source: str) -> Open:
    try:
        parts = urlsplit(source)
    except ValueError:
        raise PullError(
            f"{shown(source)} is no source: a folder, http://…, https://…, s3://BUCKET/PREFIX or hf://OWNER/NAME"
        ) from None
    scheme = parts.scheme.lower()
    if scheme in ("http", "https"):
        # Strictly: with '#' or '/' in a password another host would be asked, and the message would show a part of it.
        address, _, fragment = source.partition("#")
        try:
            split(source if "@" in fragment else address)
        except AddressError as error:
            raise PullError(f"{shown(source)} cannot be asked: {error}") from None
        return lambda name: _open_http(parts, name)
    if scheme == "s3":
        return _open_s3(source)
    if scheme == "hf":
        return _open_hub(source)
    if scheme and "://" in source:
        raise PullError(
            f"{shown(source)!r} begins with {scheme}://; known are http://, https://, s3://, hf:// and a folder"
        )
    folder = Path(source)
    if not folder.is_dir():
        raise PullError(f"{shown(source)} is no folder, and begins with none of http://, https://, s3://, hf://")
    return lambda name: (folder / name).open("rb")


class _SameKind(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to http(s) only, and never from https back to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            fp.close()
            raise PullError(f"{shown(req.full_url)} redirects to {shown(newurl)}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_http(parts: SplitResult, name: str, token: str | None = None) -> AbstractContextManager[IO[bytes]]:
    """A file below an address; a query stays behind it, as signed addresses of a folder have one.

    User and password, or a token, are sent to this host only, not to one that it redirects to.
    """
    login, _, place = parts.netloc.rpartition("@")
    url = parts._replace(netloc=place, path=f"{parts.path.rstrip('/')}/{quote(name)}", fragment="").geturl()
    try:
        request = urllib.request.Request(url)
        if token:
            request.add_unredirected_header("authorization", f"Bearer {token}")
        if login:
            user, _, password = login.partition(":")
            pair = f"{unquote(user)}:{unquote(password)}".encode()
            request.add_unredirected_header("authorization", f"Basic {base64.b64encode(pair).decode()}")
        stream: IO[bytes] = urllib.request.build_opener(_SameKind).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise PullError(f"{shown(url)} answers {error.code} {one_line(error.reason)}") from error
    except OSError as error:
        raise PullError(f"{shown(url)} cannot be reached: {one_line(getattr(error, 'reason', error))}") from error
    except (ValueError, http.client.HTTPException) as error:  # whose own words repeat the address
        raise PullError(f"{shown(url)} is no address that can be asked") from error
    return closing(stream)


def _open_hub(source: str) -> Open:
    """A model repository of the Hugging Face Hub, `hf://OWNER/NAME[@REVISION]`; HF_ENDPOINT and HF_TOKEN count."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source, flags=re.IGNORECASE)
    if found is None:
        raise PullError(f"{shown(source)} is not of the form hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    hub: Any = importlib.import_module("huggingface_hub")
    revision = quote(found[2] or "main", safe="")
    place = urlsplit(f"{hub.constants.ENDPOINT.rstrip('/')}/{found[1]}/resolve/{revision}")
    token = hub.get_token()
    return lambda name: _open_http(place, name, token)


def _open_s3(source: str) -> Open:
    try:
        boto3: Any = importlib.import_module("boto3")
    except ImportError as error:
        raise PullError(f"{shown(source)} needs boto3, which is not installed: pip install 'anyo[s3]'") from error
    bucket, prefix = urlsplit(source).netloc, urlsplit(source).path.strip("/")
    client = boto3.client("s3")

    def open_file(name: str) -> AbstractContextManager[IO[bytes]]:
        try:
            body: IO[bytes] = client.get_object(Bucket=bucket, Key=f"{prefix}/{name}".lstrip("/"))["Body"]
        except Exception as error:  # credentials, network, or no such key: botocore has a class for each
            raise PullError(f"{name} at {shown(source)} cannot be read: {one_line(error)}") from error
        return closing(body)

    return open_file
