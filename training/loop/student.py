"""Distillation from a teacher during training; see `training.objectives.distillation`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modeling.encoder.item_tower import ItemTower
from training.data.report import DataError
from training.evaluation.teacher_lists import Teacher, TeacherLists
from training.loop.examples import TrainingBatch
from training.objectives.distillation import DistillationSpec, ListDistillation, TeacherVectors


class Student(nn.Module):
    """The losses and the item vectors that come from a teacher.

    Args:
        spec: what is taken.
        teacher: as exported; its item vectors are in the row order of the catalog.
        items: the student's. With ``spec.embedding`` its id table is a sum until `fold`.
        seed: of the shuffled control.

    Raises:
        DataError: the teacher has no item vectors, or lists that are too short.
    """

    def __init__(self, spec: DistillationSpec, teacher: Teacher, items: ItemTower, seed: int) -> None:
        super().__init__()
        if spec.shuffled:
            teacher = teacher.shuffled(seed)
        self._lists = TeacherLists(teacher, spec.candidates) if spec.reads_lists else None
        self._loss = ListDistillation(spec)
        self._sums = spec.embedding > 0
        if self._sums:
            if len(teacher.items_NC) != items.size:
                raise DataError(
                    f"method.distillation.embedding needs item vectors of the teacher: {teacher.facts.get('artifact')} "
                    f"has {len(teacher.items_NC)}, and the catalog {items.size} items"
                )
            added = TeacherVectors(torch.from_numpy(teacher.items_NC), items.id_dim, spec.embedding)
            parametrize.register_parametrization(items.ids, "weight", added)

    def computing(self) -> AbstractContextManager[object]:
        """Around one pass: the table is summed once."""
        return parametrize.cached() if self._sums else nullcontext()

    def forward(self, users_PD: Tensor, items_ND: Tensor, batch: TrainingBatch) -> Tensor:
        """The summed loss over the teacher's lists for the targets of a batch; ``users_PD`` are scaled."""
        if self._lists is None:
            return users_PD.new_zeros(())
        found = self._lists(*(np.asarray(keys_P) for keys_P in (batch.owners_P, batch.places_P)))
        rows_PK, scores_PK = (torch.from_numpy(each).to(users_PD.device) for each in found)
        loss: Tensor = self._loss(users_PD, items_ND, rows_PK, scores_PK)
        return loss

    def fold(self, items: ItemTower) -> None:
        """Leave one id table, which holds the sum."""
        if self._sums:
            parametrize.remove_parametrizations(items.ids, "weight", leave_parametrized=True)
