"""Reads a safetensors file into memory of its own, tensor by tensor, and hashes the very bytes that it keeps.

The libraries map the file instead: then whoever writes to it later changes what is served, and whoever shortens it
ends the process. Each tensor has memory of its own, so that one of several that are shared can be given back alone.
`map_tensors` is for tables that do not fit into memory, where the operator has asked for it.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Callable, Collection
from typing import IO, Any, cast

import numpy as np
import torch

from modeling.artifact.plain_json import JsonError, parse

LARGEST_HEADER = 4 << 20  # bytes; a tensor takes about a hundred. Parsing it holds the interpreter's lock.
BLOCK = 1 << 20
DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64,
    "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip


class TensorFileError(ValueError):
    """A file is not in the safetensors format; the message is one sentence."""


def read_tensors(
    stream: IO[bytes], size: int, update: Callable[[Any], object], *, skip: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a file of ``size`` bytes; raises `TensorFileError`.

    Args:
        stream: the file, at its beginning.
        size: its bytes, which bound what is allocated.
        update: takes every byte of the file in its order, e.g. that of a hash.
        skip: names of tensors that are read and not kept.
    """
    places = _header(stream, size, update)
    found: dict[str, torch.Tensor] = {}
    for name, dtype, shape, length in places:
        if name in skip:
            _pass_over(stream, length, update)
            continue
        raw = torch.empty(length, dtype=torch.uint8)
        if length:
            _fill(stream, memoryview(cast(Any, raw.numpy())), update)
        found[name] = raw.view(dtype).reshape(shape) if length else torch.empty(shape, dtype=dtype)
    return found


def map_tensors(content: mmap.mmap) -> dict[str, torch.Tensor]:
    """The tensors of a mapped file, not to be written to; raises `TensorFileError`.

    They lie in the mapping and keep it open. One that does not begin at a multiple of its element's size is copied.
    """
    places = _header(cast(Any, content), len(content), lambda block: None)
    begin, found = content.tell(), dict[str, torch.Tensor]()
    for name, dtype, shape, length in places:
        if not length:
            found[name] = torch.empty(shape, dtype=dtype)
            continue
        raw = np.frombuffer(content, np.uint8, length, begin)
        if begin % dtype.itemsize:
            raw = raw.copy()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            found[name] = torch.from_numpy(raw).view(dtype).reshape(shape)
        begin += length
    return found


def tensor_bytes(stream: IO[bytes], size: int) -> dict[str, int]:
    """Bytes of every tensor of a file of ``size`` bytes, by name, from its header; raises `TensorFileError`."""
    return {name: length for name, _, _, length in _header(stream, size, lambda block: None)}


def _header(
    stream: IO[bytes], size: int, update: Callable[[Any], object]
) -> list[tuple[str, torch.dtype, list[int], int]]:
    """Name, type, shape and bytes of every tensor, in the order in which they lie, without holes."""
    start = _take(stream, 8, update)
    length = int.from_bytes(start, "little")
    if length > min(LARGEST_HEADER, size - 8):
        raise TensorFileError(
            f"its header is said to hold {length} bytes; the file has {size}, and at most {LARGEST_HEADER} are read"
        )
    try:
        header = parse(_take(stream, length, update), "its header")
    except JsonError as error:
        raise TensorFileError(str(error)) from None
    if not isinstance(header, dict):
        raise TensorFileError("its header is not a JSON object")
    header.pop("__metadata__", None)
    places = sorted((_place(name, entry) for name, entry in header.items()), key=lambda place: place[3:])
    end = 0
    for name, _, _, begin, stop in places:
        if begin != end:
            raise TensorFileError(f"tensor {name!r} begins at byte {begin}, and the one before it ends at {end}")
        end = stop
    if end != size - 8 - length:
        raise TensorFileError(f"its tensors take {end} bytes, and {size - 8 - length} follow its header")
    return [(name, dtype, shape, stop - begin) for name, dtype, shape, begin, stop in places]


def _place(name: str, entry: Any) -> tuple[str, torch.dtype, list[int], int, int]:
    if not isinstance(entry, dict) or entry.get("dtype") not in DTYPES:
        kind = entry.get("dtype") if isinstance(entry, dict) else entry
        raise TensorFileError(f"tensor {name!r} has type {str(kind)[:40]!r}; known are {', '.join(DTYPES)}")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise TensorFileError(f"tensor {name!r} has shape {str(shape)[:40]} at bytes {str(offsets)[:40]}")
    dtype = DTYPES[entry["dtype"]]
    needed = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != needed:
        raise TensorFileError(
            f"tensor {name!r} of shape {shape} needs {needed} bytes, and has {offsets[1] - offsets[0]}"
        )
    return name, dtype, shape, offsets[0], offsets[1]


def _whole(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(each) is int and 0 <= each < 2**60 for each in numbers)


def _take(stream: IO[bytes], length: int, update: Callable[[Any], object]) -> bytes:
    data = stream.read(length)
    update(data)
    if len(data) != length:
        raise TensorFileError(f"it ends after {len(data)} of {length} bytes of its header")
    return data


def _fill(stream: Any, view: memoryview, update: Callable[[Any], object]) -> None:
    """In blocks, so that the hash finds them in the processor's cache."""
    done = 0
    while done < len(view):
        block = view[done : done + BLOCK]
        read = stream.readinto(block)
        if not read:
            raise TensorFileError("it ended while it was read")
        update(block[:read])
        done += read


def _pass_over(stream: IO[bytes], length: int, update: Callable[[Any], object]) -> None:
    while length:
        block = stream.read(min(BLOCK, length))
        if not block:
            raise TensorFileError("it ended while it was read")
        update(block)
        length -= len(block)
