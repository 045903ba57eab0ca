"""Vectors of many beginnings of the same histories, from as few passes as the encoder allows.

Where one pass gives the state after each item (``capabilities.every_boundary``), all targets whose history is read
whole, from the user's first item on, have one. Later targets read the newest items alone, a window that starts
elsewhere for each: a pass of their own. `SHARE` of the limit lets several of them have one, at the cost of history.

Shape legend: R targets, D item dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling.encoder.prompt import Prompt
from modeling.encoder.user_encoder import UserEncoder
from modeling.methods.base import HistoryEncoder
from training.data.report import DataError
from training.evaluation.full_ranking import length_batches

SHARE = 0.5
"""Of the items that a target would read alone, the least that it reads in a shared pass."""


@dataclass(frozen=True)
class Pass:
    """One prompt, and the targets that it is read for.

    Attributes:
        prompt: of the longest history.
        rows: numbers of the targets.
        items: how many of the prompt's items stand before each.
    """

    prompt: Prompt
    rows: list[int]
    items: list[int]


def passes_of(
    encoder: HistoryEncoder,
    sequences: Sequence[NDArray[Any]],
    users_R: NDArray[np.int64],
    places_R: NDArray[np.int64],
    *,
    shared: bool = False,
) -> list[Pass]:
    """The passes that a set of targets needs.

    Args:
        encoder: whose prompts they are.
        sequences: rows of every user, oldest first.
        users_R, places_R: which user, and which place of the target in the user's sequence; those of a user stand
            together, in the order of places.
        shared: whether targets share a pass that would each read the newest items alone; each then reads fewer, but
            at least `SHARE` of them.

    Raises:
        DataError: passes should be ``shared``, and each target needs one of its own.
    """
    every = isinstance(encoder, UserEncoder) and encoder.capabilities.every_boundary
    if shared and not every:
        raise DataError("passes cannot be shared: a state of this encoder is that of a whole history")
    found, left = [], len(users_R)
    while left:  # from the newest target of a user to the oldest
        newest, user = int(places_R[left - 1]), users_R[left - 1]
        read = sequences[user][max(0, newest - encoder.history_limit) : newest]
        prompt = encoder.prepare(np.asarray(read).tolist())
        held, taken = len(prompt.boundaries_M), left - 1
        start = newest - held  # the place of the first item that is read
        least = 1 if start == 0 else int(np.ceil(held * SHARE)) if shared else held
        while every and taken and users_R[taken - 1] == user and places_R[taken - 1] - start >= least:
            taken -= 1
        rows = list(range(taken, left))
        found.append(Pass(prompt, rows, [int(place) - start for place in places_R[rows]]))
        left = taken
    return found


def encode_passes(encoder: HistoryEncoder, passes: Sequence[Pass], progress: Callable[[int], object]) -> NDArray[Any]:
    """Vectors of all targets of passes, [R, D] in float32.

    Args:
        encoder: of the prompts.
        passes: no two of the same target.
        progress: is told of positions that were read.
    """
    out = np.empty((sum(len(each.rows) for each in passes), 0), np.float32)
    for numbers in length_batches([each.prompt for each in passes]):
        batch = [passes[number] for number in numbers]
        rows = [row for each in batch for row in each.rows]
        if len(rows) == len(batch):
            vectors_PD = encoder.encode([each.prompt for each in batch])
        else:
            assert isinstance(encoder, UserEncoder)
            vectors_PD = _encode_boundaries(encoder, batch)
        if not out.shape[1]:
            out = np.empty((len(out), vectors_PD.shape[1]), np.float32)
        out[rows] = vectors_PD
        progress(sum(each.prompt.length for each in batch))
    return out


@torch.inference_mode()
def _encode_boundaries(encoder: UserEncoder, batch: Sequence[Pass]) -> NDArray[np.float32]:
    """Vectors [P, D] of all targets of a batch, in the order of its passes."""
    cut = [
        replace(each.prompt, boundaries_M=each.prompt.boundaries_M[:items]) for each in batch for items in each.items
    ]
    owners_P = torch.from_numpy(np.repeat(np.arange(len(batch)), [len(each.items) for each in batch]))
    last_P = torch.tensor([int(prompt.boundaries_M[-1]) for prompt in cut])
    states_PH = encoder.boundary_states(encoder.collate([each.prompt for each in batch]), owners_P, last_P)
    vectors_PD: NDArray[np.float32] = encoder.project(states_PH, encoder.recent(cut)).float().cpu().numpy()
    return vectors_PD
