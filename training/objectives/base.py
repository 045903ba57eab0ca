"""The contract of an objective: a loss over user vectors, the vectors of items, and the rows of the next items.

Objectives are files of this folder: the file's name is the kind, and its ``OBJECTIVE`` the class.

Shape legend: P positions with a target, D item dimension, N items, R rows.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor, nn

from modeling.spec import Section

_NOT_KINDS = {"base", "anchor", "contrastive", "distillation", "softmax", "trie_softmax", "views"}


class ObjectiveSpec(Section):
    """The loss at every item boundary, or at the last.

    ``full``: softmax over all items. ``sampled``: over the target and ``negatives`` draws from the training
    popularity raised to ``popularity_power``, corrected by their log probability (logQ). ``in_batch``: over the targets
    of the batch. ``gbce``: binary cross-entropy with ``negatives`` uniform draws, corrected for their number.
    """

    kind: str = "full"
    negatives: int = Field(512, ge=1, description="negatives drawn per batch, sampled and gbce only")
    popularity_power: float = Field(1.0, ge=0, le=1, description="exponent of popularity, sampled only")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all items, full only")
    logq: bool = Field(True, description="subtract the log probability of negatives from their logits, in_batch only")
    calibration: float = Field(
        0.75, ge=0, le=1, description="t of gBCE: 0 is plain binary cross-entropy, 1 undoes the sampling, gbce only"
    )
    queue: int = Field(
        0, ge=0, description="number of item vectors of earlier batches used as negatives, from a momentum copy of the "
        "encoder (MoCo); in_batch with items.tower 'encoder' only; 0: none",
    )  # fmt: skip
    momentum: float = Field(0.9995, ge=0, lt=1, description="momentum of that copy per step, with a queue only")
    symmetric: bool = Field(False, description="add the loss from items to users, in_batch only")
    mask_seen: bool = Field(
        False, description="exclude items that the user has chosen before from the softmax, as answers and metrics do"
    )
    pull: float = Field(0.0, ge=0, description="initial weight of the pull of the id table to the id model's")
    pull_share: float = Field(0.5, gt=0, le=1, description="share of the training after which the pull is zero")

    @field_validator("kind")
    @classmethod
    def _is_a_file(cls, kind: str) -> str:
        if kind not in objective_kinds():
            raise ValueError(f"objective.kind={kind!r} is not known; allowed are {', '.join(objective_kinds())}")
        return kind


@dataclass(frozen=True)
class Candidates:
    """The items of a training run.

    Attributes:
        popularity_N: training interactions of each.
        chosen_N: which of them may be a negative: an item without interactions is never a target.
        shares_N: how often an item is a target in an epoch, as a share of all targets.
    """

    popularity_N: NDArray[np.int64]
    chosen_N: NDArray[np.bool_]
    shares_N: NDArray[np.float64]


class ItemVectors(Protocol):
    """Vectors of items as they are scored, with gradients; computed where they are asked for."""

    def all(self) -> Tensor:
        """Of the catalog, [N, D]."""
        ...

    def of(self, rows_R: Tensor) -> Tensor:
        """Of some rows, [R, D]."""
        ...


class Objective(nn.Module):
    """A loss summed over positions.

    Attributes:
        settings: fields of ``ObjectiveSpec`` that it reads.
        needs_all: whether it asks for the vectors of the whole catalog.
    """

    settings: ClassVar[frozenset[str]] = frozenset()
    needs_all: ClassVar[bool] = False

    def __init__(self, spec: ObjectiveSpec, candidates: Candidates) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, users_PD: Tensor, items: ItemVectors, targets_P: Tensor, seen_S2: Tensor | None = None) -> Tensor:
        """The summed loss.

        Args:
            users_PD: user vectors, multiplied by the scale (1 / temperature).
            items: vectors of items.
            targets_P: rows of the next items.
            seen_S2: pairs of a position and a row that is no negative there; None: every row may be one.
        """
        raise NotImplementedError


def objective_kinds() -> list[str]:
    """Kinds of objectives, in alphabetical order."""
    files = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in files if module.name not in _NOT_KINDS)


def objective_class(kind: str) -> type[Objective]:
    """The class of a kind that ``ObjectiveSpec`` allows."""
    found: type[Objective] = importlib.import_module(f"training.objectives.{kind}").OBJECTIVE
    return found
