"""Writing arrays and tensors: the one place that calls safetensors' save functions.

The format holds elements row by row. Some versions of the library write the bytes of an array as they lie in memory,
whatever its strides, so an array in column order comes back scrambled: same shape, other numbers. Here everything is
put in row order first, and the file is read again and compared before anybody relies on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as _save_numpy
from safetensors.torch import save_file as _save_torch
from torch import Tensor, nn


class TensorFileError(OSError):
    """A file does not hold what was to be written: a library, a disk or a file system failed."""


def save_arrays(
    arrays: Mapping[str, NDArray[Any]], path: Path | str, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write numpy arrays of any memory layout and byte order; what is read back equals what was given.

    Raises:
        TensorFileError: the written file holds something else.
        SafetensorError: an array of a kind that the format has no name for (objects, text).
    """
    ready = {name: _row_order(array) for name, array in arrays.items()}
    _save_numpy(ready, path, metadata=dict(metadata) if metadata else None)
    with safe_open(path, framework="numpy") as file:
        _refuse_names(path, set(file.keys()), set(ready))
        for name, array in ready.items():
            found = file.get_tensor(name)
            if found.dtype != array.dtype or found.shape != array.shape or found.tobytes() != array.tobytes():
                raise _differs(path, name)


def save_tensors(tensors: Mapping[str, Tensor], path: Path | str, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write torch tensors of any device, memory layout or storage; what is read back equals what was given.

    Raises:
        TensorFileError: the written file holds something else.
    """
    ready: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        # Views of a common storage are refused by the library, or would be written with all of it.
        if plain.numel() and (plain.untyped_storage().nbytes() != plain.nbytes or plain.data_ptr() in places):
            plain = plain.clone()
        places.add(plain.data_ptr())
        ready[name] = plain
    _save_torch(ready, path, metadata=dict(metadata) if metadata else None)
    compare_tensors(ready, path)


def compare_tensors(tensors: Mapping[str, Tensor], path: Path | str) -> None:
    """Raise `TensorFileError` unless a file holds exactly these tensors, bit by bit."""
    with safe_open(path, framework="pt") as file:
        _refuse_names(path, set(file.keys()), set(tensors))
        for name, tensor in tensors.items():
            if not _same(file.get_tensor(name), tensor):
                raise _differs(path, name)


def save_pretrained(model: nn.Module, folder: Path, *, shard: str | None = None) -> None:
    """Write a Hugging Face model in its own format; what is read back equals the weights that have the same name.

    ``shard``: at most so much in a file, as transformers spells it (``64MB``); None: its default.

    Raises:
        TensorFileError: the written files hold something else.
    """
    sizes = {} if shard is None else {"max_shard_size": shard}
    cast(Any, model).save_pretrained(str(folder), safe_serialization=True, **sizes)
    state = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                if name in state and not _same(file.get_tensor(name), state[name]):
                    raise _differs(path, name)


def _row_order(array: NDArray[Any]) -> NDArray[Any]:
    """The array in row order and this machine's byte order (unlike `np.ascontiguousarray`, a scalar stays one)."""
    native = np.asarray(array)
    if not native.dtype.isnative:
        native = native.astype(native.dtype.newbyteorder("="))
    if native.dtype.hasobject or native.dtype.kind not in "biuf":
        raise SafetensorError(f"an array of type {native.dtype} cannot be written: numbers and booleans can")
    return np.asarray(native, order="C")


def _same(found: Tensor, given: Tensor) -> bool:
    if found.dtype != given.dtype or found.shape != given.shape:
        return False
    if not found.numel():  # has no stride to be viewed with
        return True
    pairs = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for tensor in (found, given))
    return torch.equal(*pairs)


def _refuse_names(path: Path | str, found: set[str], given: set[str]) -> None:
    if found != given:
        raise TensorFileError(f"{path} was written with {sorted(given)} and holds {sorted(found)}")


def _differs(path: Path | str, name: str) -> TensorFileError:
    return TensorFileError(f"{path}: {name!r} read back is not what was written; free the disk and write it again")
