"""States of texts at a cut of a backbone, on disk: what frozen layers make of a text is computed once for a training.

A folder holds the states of a set of texts one after the other (``states.npy``, fp16 or fp32), and where each begins
(``texts.safetensors``). It is named by everything that decides the states: the weights of the base, the cut, the
tokenizer, the precision and the texts themselves; so what is found there is right, and other runs on the same texts
use it again.

Shape legend: P positions of all texts, H width, B texts of a batch, T tokens.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from modeling.artifact.atomic import replaced_folder
from modeling.artifact.tensor_files import save_arrays
from training.recipe import RecipeError

STATES, TEXTS = "states.npy", "texts.safetensors"
POSITIONS = 2048
"""Read in one pass."""
SPARE = 1 << 30
"""Bytes of the disk that are left free."""
LARGEST = float(np.finfo(np.float16).max)

Kept = Literal["fp16", "fp32"]
DTYPES = {"fp16": np.float16, "fp32": np.float32}
Ids = NDArray[np.int64]


class KeptStates:
    """The states of known texts.

    Args:
        folder: made by `keep_states`.
    """

    def __init__(self, folder: Path) -> None:
        arrays = load_file(folder / TEXTS)
        self._starts = {key.tobytes(): int(start) for key, start in zip(arrays["keys"], arrays["starts"], strict=True)}
        self._states_PH = np.load(folder / STATES, mmap_mode="r")

    def batch(self, texts: Sequence[Ids]) -> Tensor:
        """States [B, T, H] in fp32, zeros where a text is shorter than the longest; raises KeyError for another."""
        shape = (len(texts), max(map(len, texts)), self._states_PH.shape[1])
        found_BTH = np.zeros(shape, np.float32)
        for row, text in enumerate(texts):
            start = self._starts[_key(text).tobytes()]
            found_BTH[row, : len(text)] = self._states_PH[start : start + len(text)]
        return torch.from_numpy(found_BTH)


def keep_states(
    cache: Path,
    texts: Iterable[Ids],
    lower: Callable[[Tensor], Tensor],
    *,
    decides: Sequence[Any],
    width: int,
    kept: Kept,
    progress: Callable[[int], object] = lambda done: None,
) -> KeptStates:
    """The states of ``texts``, computed unless the cache has them.

    Args:
        cache: folder of caches; one more is made in it.
        texts: token ids, each without padding; those that come twice are read once.
        lower: from token ids [B, T] to states [B, T, H]; texts of one pass have one length.
        decides: what decides the states beside the texts: hashes, numbers, names.
        width: H.
        kept: precision on disk.
        progress: called with the positions that were read.

    Raises:
        RecipeError: the disk has no room, or a state is too large for fp16.
    """
    known = {_key(text).tobytes(): text for text in texts}
    keys = sorted(known)
    digest = hashlib.sha256(json.dumps([list(decides), kept, width], default=str).encode())
    for key in keys:
        digest.update(key)
    folder = cache / f"states-{digest.hexdigest()[:16]}"
    if not (folder / TEXTS).exists():
        lengths = np.array([len(known[key]) for key in keys], np.int64)
        starts, dtype = np.cumsum(lengths) - lengths, DTYPES[kept]
        _check_room(cache, int(lengths.sum()) * width * np.dtype(dtype).itemsize)
        with replaced_folder(folder, "new") as work:
            states_PH = np.lib.format.open_memmap(work / STATES, "w+", dtype, (int(lengths.sum()), width))
            for places in _passes(lengths):
                ids_BT = torch.from_numpy(np.stack([known[keys[place]] for place in places]))
                with torch.no_grad():
                    found_BTH = lower(ids_BT).float().cpu().numpy()
                if kept == "fp16" and not float(np.abs(found_BTH).max()) <= LARGEST:
                    raise RecipeError("a state is too large for fp16: set method.kept_states=fp32")
                for place, found_TH in zip(places, found_BTH, strict=True):
                    states_PH[starts[place] : starts[place] + lengths[place]] = found_TH
                progress(ids_BT.numel())
            states_PH.flush()
            del states_PH
            keys_N16 = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
            save_arrays({"keys": keys_N16, "starts": starts}, work / TEXTS)
    return KeptStates(folder)


def _key(text: Ids) -> NDArray[np.uint8]:
    return np.frombuffer(hashlib.sha256(np.asarray(text, np.int64).tobytes()).digest()[:16], np.uint8)


def _passes(lengths: Ids) -> Iterable[list[int]]:
    """Places of texts of one length, so many that a pass has about ``POSITIONS`` positions: no padding is read."""
    order = np.argsort(lengths, kind="stable")
    for length in np.unique(lengths).tolist():
        same = order[lengths[order] == length]
        size = max(1, POSITIONS // length)
        yield from (same[start : start + size].tolist() for start in range(0, len(same), size))


def _check_room(cache: Path, size: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if size + SPARE > free:
        raise RecipeError(
            f"the states take {size / 1e9:.1f} GB, and {cache} has {free / 1e9:.1f} GB free: fit on fewer sequences "
            "(method.sequences), or leave method.kept_states out"
        )
