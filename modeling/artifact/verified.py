"""Files of a folder that are read once: the bytes whose hash is compared are the bytes that are used.

Nothing stays open or mapped, so what happens to a file afterwards changes nothing. `Files.mapped` is the one exception.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from modeling.artifact.folders import ArtifactError, files_in
from modeling.artifact.plain_json import JsonError, parse
from modeling.artifact.tensor_reader import BLOCK, TensorFileError, map_tensors, read_tensors, tensor_bytes

MANIFEST = "manifest.json"
LARGEST_SMALL_FILE = 256 << 20  # of what is read in one piece and is no table of numbers


class Files:
    """The files of a folder, or of one below it. With ``expected`` hashes, each is compared when it is read."""

    def __init__(self, folder: Path | str, expected: Mapping[str, str] | None = None) -> None:
        """Walk ``folder``; raises ArtifactError (a loop of links, something that is no file) and OSError."""
        self.folder = Path(folder)
        self.name = self.folder.name
        self._paths = files_in(self.folder)
        self._expected = expected
        self._prefix = ""
        self._verified: set[str] = set()
        self._kept: dict[str, bytes] = {}
        self._mappings: list[mmap.mmap] = []

    def below(self, prefix: str) -> Files:
        """The files of a folder inside this one, with the same hashes."""
        inner = object.__new__(Files)
        inner.__dict__.update(self.__dict__)
        inner.folder, inner._prefix = self.folder / prefix, f"{self._prefix}{prefix}/"
        return inner

    def expect(self, expected: Mapping[str, str]) -> None:
        """Compare every file with these hashes from now on; names are relative to this folder.

        Raises:
            ArtifactError: inside another artifact, a hash is not the one that the outer manifest has.
        """
        full = {self._prefix + name: sha256 for name, sha256 in expected.items()}
        if self._expected is None:
            self._expected = full
            return
        for name, sha256 in full.items():
            if self._expected.get(name) != sha256:
                raise ArtifactError(f"{name} of {self.name} has other hashes in two manifests")

    def names(self) -> list[str]:
        """The names of all files of this folder, sorted."""
        start = len(self._prefix)
        return sorted(name[start:] for name in self._paths if name.startswith(self._prefix))

    @property
    def sealed(self) -> bool:
        """Whether a manifest says what the files are."""
        return self._expected is not None

    def __contains__(self, name: str) -> bool:
        full = self._prefix + name
        return full in self._paths and (self._expected is None or full in self._expected or name == MANIFEST)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        return self._path(name).stat().st_size

    def read(self, name: str, limit: int = LARGEST_SMALL_FILE) -> bytes:
        """The bytes of a file; raises ArtifactError (missing, altered, larger than ``limit``)."""
        full = self._prefix + name
        if full in self._kept:
            return self._kept[full]
        with self._open(name) as (stream, size):
            if size > limit:
                raise ArtifactError(f"{name} of {self.name} holds {size} bytes, and at most {limit} are read")
            data = stream.read(size + 1)  # a file that has grown meanwhile is not what was hashed
        self._compare(name, hashlib.sha256(data).hexdigest(), len(data))
        if name == MANIFEST:  # what the others are held against must not change between two looks at it
            self._kept[full] = data
        return data

    def mapped(self, name: str) -> mmap.mmap:
        """A file mapped read-only, hashed block by block through the same open file; raises ArtifactError.

        What is written into the file afterwards is seen, and a file that is cut ends the process; another file that
        takes its place changes nothing.
        """
        digest, size = hashlib.sha256(), 0
        with self._open(name) as (stream, length):
            if not length:
                raise ArtifactError(f"{name} of {self.name} is empty")
            while block := stream.read(BLOCK):
                digest.update(block)
                size += len(block)
            found = mmap.mmap(cast(_Whole, stream).fileno(), length, access=mmap.ACCESS_READ)
        self._compare(name, digest.hexdigest(), size)
        self._mappings.append(found)
        return found

    def settle(self) -> None:
        """Let go of the pages of mapped files that were read so far, and expect single rows to be read from now on."""
        for mapping in self._mappings:
            mapping.madvise(mmap.MADV_DONTNEED)
            mapping.madvise(mmap.MADV_RANDOM)

    def json(self, name: str, limit: int = LARGEST_SMALL_FILE) -> Any:
        """The value of a JSON file of at most ``limit`` bytes; raises ArtifactError."""
        try:
            return parse(self.read(name, limit), f"{name} of {self.name}")
        except JsonError as error:
            raise ArtifactError(str(error)) from None

    def tensors(
        self, name: str, *, skip: Collection[str] = (), also: Any = None, mapped: bool = False
    ) -> dict[str, torch.Tensor]:
        """The tensors of a safetensors file, in memory of their own; ``also`` is a hash that takes its bytes too.
        ``mapped``: they lie in the file instead, see `mapped`, and take no memory.

        Raises:
            ArtifactError: missing, altered, or not in the format.
        """
        return self._all_finite(name, self._mapped_tensors(name) if mapped else self._read_tensors(name, skip, also))

    def _mapped_tensors(self, name: str) -> dict[str, torch.Tensor]:
        content = self.mapped(name)
        try:
            return map_tensors(content)
        except TensorFileError as error:
            raise ArtifactError(f"{name} of {self.name} is not a safetensors file: {error}") from None

    def _read_tensors(self, name: str, skip: Collection[str], also: Any) -> dict[str, torch.Tensor]:
        digest = hashlib.sha256()

        def update(block: Any) -> None:
            digest.update(block)
            if also is not None:
                also.update(block)

        with self._open(name) as (stream, size):
            try:
                found = read_tensors(stream, size, update, skip=skip)
            except TensorFileError as error:
                self.verify(name)  # a file that was altered is to be called that
                raise ArtifactError(f"{name} of {self.name} is not a safetensors file: {error}") from None
        self._compare(name, digest.hexdigest(), size)
        return found

    def _all_finite(self, name: str, found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.sealed and (odd := next((key for key, tensor in found.items() if not _finite(tensor)), None)):
            raise ArtifactError(f"{name} of {self.name}: tensor {odd!r} holds NaN or infinity; numbers must be finite")
        return found

    def tensor_sizes(self, name: str) -> dict[str, int]:
        """Bytes of every tensor of a safetensors file by its header alone, which is not compared with any hash.

        Raises:
            ArtifactError: missing, or not in the format.
        """
        with self._open(name) as (stream, size):
            try:
                return tensor_bytes(stream, size)
            except TensorFileError as error:
                raise ArtifactError(f"{name} of {self.name} is not a safetensors file: {error}") from None

    def arrays(self, name: str, *, mapped: bool = False) -> dict[str, NDArray[Any]]:
        """As `tensors`, as numpy has them."""
        found = self.tensors(name, mapped=mapped)
        if odd := [
            key for key, tensor in found.items() if tensor.dtype == torch.bfloat16 or tensor.dtype.itemsize == 0
        ]:
            raise ArtifactError(f"{name} of {self.name}: tensor {odd[0]!r} has a type that arrays do not have")
        return {key: np.asarray(tensor.numpy()) for key, tensor in found.items()}

    def verify(self, name: str, also: Any = None) -> None:
        """Hash a file without keeping it; ``also`` takes its bytes too. Raises ArtifactError."""
        digest, size = hashlib.sha256(), 0
        with self._open(name) as (stream, _):
            while block := stream.read(BLOCK):
                digest.update(block)
                if also is not None:
                    also.update(block)
                size += len(block)
        self._compare(name, digest.hexdigest(), size)

    def copy(self, name: str, target: Path) -> None:
        """Write a file's bytes elsewhere; raises ArtifactError where they are not those expected."""
        with target.open("wb") as stream:
            self.verify(name, also=_Writer(stream))

    def verify_rest(self) -> None:
        """Hash what was listed and has not been read."""
        for name in sorted(set(self._expected or ()) - self._verified):
            if name.startswith(self._prefix):
                self.verify(name[len(self._prefix) :])

    @contextlib.contextmanager
    def private_copy(self, changed: Mapping[str, bytes]) -> Iterator[Path]:
        """A folder that only this process can write to, with these contents, for libraries that insist on paths."""
        with tempfile.TemporaryDirectory(prefix="anyo-") as place:
            for name, data in changed.items():
                (Path(place) / name).write_bytes(data)
            yield Path(place)

    def _path(self, name: str) -> Path:
        if name not in self:
            raise ArtifactError(f"artifact {self.name} lacks {self._prefix + name}")
        return self._paths[self._prefix + name]

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """Never waits for a pipe that took the file's place meanwhile."""
        descriptor = os.open(self._path(name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as stream:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{name} of {self.name} is not a file")
            yield cast(IO[bytes], _Whole(stream)), status.st_size

    def _compare(self, name: str, found: str, size: int) -> None:
        full = self._prefix + name
        expected = (self._expected or {}).get(full)
        if expected is not None and found != expected:
            raise ArtifactError(
                f"{full} of {self.name} has sha256 {found[:12]}… ({size} bytes), and manifest.json expects "
                f"{expected[:12]}…"
            )
        self._verified.add(full)


def _finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite; without a copy. Eight-bit floats have no such reduction and pass."""
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2 or not tensor.numel():
        return True
    return all(math.isfinite(float(end)) for end in torch.aminmax(tensor))


class _Whole:
    """A stream whose `read` gives all that was asked for, as buffered ones do, without a buffer's copy."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.readinto, self.fileno = stream.readinto, stream.fileno

    def read(self, length: int) -> bytes:
        blocks, left = [], length
        while left and (block := self._stream.read(min(left, 1 << 26))):
            blocks.append(block)
            left -= len(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)


class _Writer:
    """A file that takes bytes as a hash does."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.update = stream.write


Folder = Path | Files


def files_of(folder: Folder) -> Files:
    """The files of a folder, where they are not that already."""
    return folder if isinstance(folder, Files) else Files(folder)
