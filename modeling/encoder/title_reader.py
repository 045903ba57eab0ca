"""The text tower's reader: titles become unit vectors, pooled states of a language model.

The last layer of a decoder is made for the next token and describes a text badly; a layer at a third of its depth does
it better (decision 0050). So the reader can run the first layers alone, which also costs less.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.numpy import load
from torch import Tensor, nn

from index.command_line.shared_parts import parts_to_make
from modeling.artifact.tensor_files import save_arrays
from modeling.backbone.loading import TextTokenizer
from modeling.encoder.pooling import Pooling, Spans, pooling_of
from modeling.spec import PoolingSpec

LAYOUT = 1
"""Part of what vectors are kept under; to be raised when titles are read otherwise."""
PART = 16_384
"""Titles that are read, and kept, together."""


class TitleReader:
    """Reads titles into unit vectors [N, C]: the pooled states of the last layer of a text backbone.

    Args:
        model: a Hugging Face body; an encoder in its native (bidirectional) mode, or a causal decoder.
        tokenize: text to token ids without special tokens.
        wrap: special tokens around a text (before, after); they are pooled too.
        limit: tokens of a title that are read.
        pooling: of the states of a title.
        weights_sha256: of the files that the model comes from; None where it comes from none.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: TextTokenizer,
        *,
        wrap: tuple[Sequence[int], Sequence[int]] = ((), ()),
        limit: int = 48,
        pooling: Pooling | None = None,
        weights_sha256: str | None = None,
    ) -> None:
        self._model = model.eval()
        self._tokenize = tokenize
        self._before, self._after = list(wrap[0]), list(wrap[1])
        self._limit = limit
        self._pooling = pooling or pooling_of(PoolingSpec(kind="mean"))
        self._weights_sha256 = weights_sha256

    @property
    def model(self) -> nn.Module:
        """The text backbone."""
        return self._model

    def digest(self, titles: Sequence[str]) -> str | None:
        """Hash of all that decides the vectors of these titles; None where that is not known."""
        if self._weights_sha256 is None:
            return None
        layers = int(cast(Any, self._model.config).num_hidden_layers)
        ids = [piece[: self._limit] for piece in self._tokenize(titles)]
        around = [self._before, self._after]
        decides = [LAYOUT, self._weights_sha256, layers, self._pooling.spec.model_dump(), around, ids]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    @torch.inference_mode()
    def __call__(
        self, titles: Sequence[str], *, batch: int = 64, progress: Callable[[int], object] = lambda done: None
    ) -> NDArray[np.float32]:
        """Vectors of ``titles`` in their order; near-equal lengths share a batch."""
        ids = [self._before + piece[: self._limit] + self._after for piece in self._tokenize(titles)]
        ids = [piece or [0] for piece in ids]
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        hidden = int(cast(Any, self._model.config).hidden_size)
        out = np.zeros((len(ids), hidden), np.float32)
        device = next(self._model.parameters()).device
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            width = max(len(ids[n]) for n in rows)
            tokens_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
            mask_BT = torch.zeros(len(rows), width, dtype=torch.long, device=device)
            for place, n in enumerate(rows):
                tokens_BT[place, : len(ids[n])] = torch.as_tensor(ids[n])
                mask_BT[place, : len(ids[n])] = 1
            states_BTH = self._model(input_ids=tokens_BT, attention_mask=mask_BT).last_hidden_state
            pooled_BH = self._pooling(states_BTH.float(), _whole(mask_BT))
            out[rows] = F.normalize(pooled_BH, dim=-1).cpu().numpy()
            progress(len(rows))
        return out


def read_or_reuse(
    reader: TitleReader,
    titles: Sequence[str],
    folder: Path | None,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float32]:
    """Vectors of ``titles`` [N, C]: those that an earlier run left in ``folder``, else read now and left there.

    More than `PART` titles are read in parts. A process that is ended leaves its parts to the next one, and processes
    that read the same titles at once (`torchrun`, or machines that share the folder) divide them.
    """
    digest = reader.digest(titles) if folder is not None else None
    if folder is None or digest is None:
        return reader(titles, progress=progress)
    file = folder / f"titles-{digest[:24]}.safetensors"
    if file.is_file():
        progress(len(titles))
        return _saved(file)
    folder.mkdir(parents=True, exist_ok=True)
    if len(titles) <= PART:
        vectors_NC = reader(titles, progress=progress)
        _save(vectors_NC, file)
        return vectors_NC
    _read_in_parts(reader, titles, file, progress)
    return _saved(file)


def _read_in_parts(reader: TitleReader, titles: Sequence[str], file: Path, progress: Callable[[int], object]) -> None:
    parts, read = file.with_suffix(".parts"), 0
    paths = [parts / f"{first:012d}.safetensors" for first in range(0, len(titles), PART)]
    with contextlib.closing(parts_to_make(paths, file)) as numbers:
        for number in numbers:
            some = titles[number * PART : (number + 1) * PART]
            _save(reader(some, progress=progress), paths[number])
            read += len(some)
    progress(len(titles) - read)
    for _ in parts_to_make([file]):
        _save(np.concatenate([_saved(path) for path in paths]), file)
        shutil.rmtree(parts)
    with contextlib.suppress(OSError):
        parts.rmdir()  # made again by a process that was late


def _saved(file: Path) -> NDArray[np.float32]:
    return np.asarray(load(file.read_bytes())["vectors"], np.float32)


def _save(vectors_NC: NDArray[np.float32], file: Path) -> None:
    work = file.with_name(f".{file.name}.writing-{os.getpid()}")
    try:
        save_arrays({"vectors": vectors_NC}, work)
        work.replace(file)
    finally:
        work.unlink(missing_ok=True)


def _whole(mask_BT: Tensor) -> Spans:
    """Spans of all positions that are not padding, which stands on the right."""
    first_B = torch.zeros(len(mask_BT), dtype=torch.long, device=mask_BT.device)
    last_B = mask_BT.sum(1) - 1
    return Spans(torch.arange(len(mask_BT), device=mask_BT.device), first_B, first_B, last_B, last_B)
