"""States of texts at a cut of a backbone, on disk: what frozen layers make of a text is computed once for a training.

A folder holds the states of a set of texts one after the other (``states.npy``, fp16 or fp32), and where each begins
(``texts.safetensors``). It is named by everything that decides the states: the weights of the base, the cut, the
tokenizer, the precision and the texts themselves; so what is found there is right, and other runs on the same texts
use it again. A process that is ended leaves what it has computed to the next one.

Shape legend: P positions of all texts, H width, B texts of a batch, T tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from index.command_line.one_writer import BeingWrittenError, one_writer
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.tensor_files import save_arrays
from training.recipe import RecipeError

STATES, TEXTS = "states.npy", "texts.safetensors"
PASSES = "passes"
"""Of unfinished states: a byte for each pass, 1 where its states are on the disk."""
FLUSH_S = 30.0
"""Between two times at which states go to the disk."""
POSITIONS = 2048
"""Read in one pass."""
SPARE = 1 << 30
"""Bytes of the disk that are left free."""
LARGEST = float(np.finfo(np.float16).max)

Kept = Literal["fp16", "fp32"]
DTYPES = {"fp16": np.float16, "fp32": np.float32}
Ids = NDArray[np.int64]


class TooLarge(RecipeError):
    """A state does not fit into the precision on disk."""


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

        passes = list(_passes(lengths))
        with _work(folder) as work:
            states_PH = _opened(work / STATES, dtype, (int(lengths.sum()), width))
            with contextlib.closing(_Done(work / PASSES, states_PH, len(passes))) as done:
                for number, places in enumerate(passes):
                    if number not in done:
                        ids_BT = torch.from_numpy(np.stack([known[keys[place]] for place in places]))
                        for place, found_TH in zip(places, _read(lower, ids_BT, kept), strict=True):
                            states_PH[starts[place] : starts[place] + lengths[place]] = found_TH
                        done.add(number)
                    progress(int(lengths[places].sum()))
            del states_PH
            keys_N16 = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1)
            save_arrays({"keys": keys_N16, "starts": starts}, work / TEXTS)
    return KeptStates(folder)


def _read(lower: Callable[[Tensor], Tensor], ids_BT: Tensor, kept: Kept) -> NDArray[np.float32]:
    with torch.no_grad():
        found_BTH: NDArray[np.float32] = lower(ids_BT).float().cpu().numpy()
    if kept == "fp16" and not float(np.abs(found_BTH).max()) <= LARGEST:
        raise TooLarge("a state is too large for fp16: set method.kept_states=fp32")
    return found_BTH


class _Done:
    """The passes whose states are in the file; states go to the disk before the passes are said to be done."""

    def __init__(self, path: Path, states_PH: NDArray[Any], count: int) -> None:
        self._path, self._states_PH, self._flushed = path, states_PH, time.monotonic()
        known = path.read_bytes() if path.exists() else b""
        self._done = bytearray(known if len(known) == count else bytes(count))

    def __contains__(self, number: int) -> bool:
        return bool(self._done[number])

    def add(self, number: int) -> None:
        self._done[number] = 1
        if time.monotonic() - self._flushed > FLUSH_S:
            self.close()

    def close(self) -> None:
        """Write what was computed."""
        cast(Any, self._states_PH).flush()
        new = self._path.with_suffix(".new")
        new.write_bytes(self._done)
        os.replace(new, self._path)
        self._flushed = time.monotonic()


@contextlib.contextmanager
def _work(folder: Path) -> Iterator[Path]:
    """The folder in which states are written until they take ``folder``'s place: that of a process that was ended, or
    a new one. While another process writes in it, a folder of this process alone, which is not kept."""
    part = folder.with_name(f"{folder.name}.part")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(one_writer(part))
        except BeingWrittenError:
            yield held.enter_context(replaced_folder(folder, "new"))
            return
        part.mkdir(exist_ok=True)
        try:
            yield part
        except TooLarge:
            shutil.rmtree(part)
            raise
        (part / PASSES).unlink()
        if folder.exists():  # another process was faster
            shutil.rmtree(part)
        else:
            part.rename(folder)


def _opened(path: Path, dtype: type[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The file of the states, as it was left, or a new one."""
    if path.exists():
        with contextlib.suppress(ValueError, EOFError):  # cut short while it was made
            found: NDArray[Any] = np.load(path, mmap_mode="r+")
            if found.shape == shape and found.dtype == dtype:
                return found
    path.with_name(PASSES).unlink(missing_ok=True)
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


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
