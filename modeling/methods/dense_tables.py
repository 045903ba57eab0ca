"""Weights of a dense artifact from its files, and its tables with a row for every item: in memory, or left on disk.

A table that is left on disk is mapped (`modeling.artifact.verified.Files.mapped`), and a request reads the rows of its
history from it. Vectors are the same bit by bit: the same rows go through the same operations.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import GOLDEN_TOLERANCE
from modeling.artifact.verified import Files
from modeling.encoder.build import Model
from modeling.encoder.history_state import FILE as HISTORY_STATE
from modeling.encoder.history_state import HistoryState
from modeling.encoder.item_tower import TABLES, leave_on_disk
from modeling.encoder.user_encoder import UserEncoder
from modeling.torch_private import tensor_tables

ITEMS, TEXT, ITEM_VECTORS = "parts/items.safetensors", "parts/text.safetensors", "item_vectors.safetensors"
IDS = ("ids.weight",)
MAPPED = {ITEMS: TABLES, TEXT: ("vectors",), HISTORY_STATE: IDS}
"""Tensors that may be left on disk, by file; beside them the item vectors."""
BLOCK = 2 << 20
"""Bytes of item vectors that are compared at a time."""


def load_into(module: nn.Module, files: Files, name: str, on_disk: Collection[str] | None = None) -> None:
    """Load weights strictly: same names, same shapes.

    Args:
        module: with ``on_disk``, its tensors may be on the device ``meta``.
        files: of the artifact.
        name: of the file.
        on_disk: tables that stay in the file, which is mapped; one of another type than the module's is converted and
            held in memory. None: all is read into memory.

    Raises:
        ArtifactError: the file is missing or altered, or holds other tensors than the module has.
    """
    found = files.tensors(name, mapped=on_disk is not None)
    expected: dict[str, Tensor] = dict(module.state_dict())
    for key in expected.keys() | found.keys():
        if key not in found or key not in expected:
            state = "lacks" if key not in found else "holds unknown"
            raise ArtifactError(f"{name} of {files.name} {state} tensor {key!r}; expected are {sorted(expected)}")
        expect_shape(name, key, tuple(found[key].shape), tuple(expected[key].shape))
    if on_disk is None:
        module.load_state_dict(found)
        return
    left = {key for key in on_disk if key in found and found[key].dtype == expected[key].dtype}
    rest = {key: found[key].to(each.dtype, copy=True) for key, each in expected.items() if key not in left}
    module.load_state_dict(rest, strict=False, assign=True)
    for key in left:
        leave_on_disk(module, key, found[key])


def expect_shape(file: str, key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `ArtifactError` where a tensor has another shape."""
    if found != expected:
        raise ArtifactError(f"{file}: tensor {key!r} has shape {list(found)}, expected {list(expected)}")


def load_items(model: Model, files: Files, mapped: bool) -> None:
    """Load the item tower of a model; with ``mapped`` that of `build_model` with ``empty_items``."""
    items = model.encoder.items
    load_into(items, files, ITEMS, TABLES if mapped else None)
    if not mapped:
        return
    if model.text is None:
        items.text_NC = torch.zeros(items.size + 1, 0)
    else:
        leave_on_disk(items, "text_NC", torch.as_tensor(model.text.vectors_NC).float())


def load_history_state(state: HistoryState, files: Files, mapped: bool) -> None:
    """Load the id model of a gated adapter; with ``mapped`` one with ``empty_items``, whose unused tensors go."""
    load_into(state.parts, files, HISTORY_STATE, IDS if mapped else None)
    for module in state.modules() if mapped else ():
        for tensors in tensor_tables(module):
            unused = [name for name, tensor in tensors.items() if tensor is not None and tensor.is_meta]
            tensors.update(dict.fromkeys(unused))


def checked_vectors(files: Files, shape: tuple[int, int], encoder: UserEncoder, mapped: bool) -> NDArray[np.float32]:
    """The stored item vectors [N, D], after a check that they equal those of the item tower; raises `ArtifactError`."""
    vectors_ND: NDArray[np.float32] = files.arrays(ITEM_VECTORS, mapped=mapped)["vectors"]
    expect_shape(ITEM_VECTORS, "vectors", vectors_ND.shape, shape)
    if mapped:
        vectors_ND.flags.writeable = False
    rows = max(1, BLOCK // (vectors_ND.itemsize * shape[1]))
    for first in range(0, len(vectors_ND), rows):
        stored_RD = vectors_ND[first : first + rows]
        with torch.inference_mode():
            rows_R = torch.arange(first, first + len(stored_RD), device=encoder.device)
            computed_RD = encoder.items.vectors(rows_R).float().cpu().numpy()
        difference = float(np.abs(computed_RD - stored_RD).max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ArtifactError(
                f"{ITEM_VECTORS} of {files.name} differs from what the item tower computes by {difference:.2g}, "
                f"and at most {GOLDEN_TOLERANCE} is allowed"
            )
    return vectors_ND
