"""Distillation from a teacher during training; see `training.objectives.distillation`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from modeling.encoder.item_tower import ItemTower
from modeling.encoder.user_encoder import UserEncoder
from training.data.report import DataError
from training.evaluation.teachers.lists import Teacher, TeacherLists
from training.loop.auxiliary import Auxiliary, Step
from training.objectives.distillation import DistillationSpec, ListDistillation, TeacherVectors


class Student(Auxiliary):
    """The losses and the item vectors that come from a teacher.

    Args:
        spec: what is taken.
        teacher: as exported; its item vectors are in the row order of the catalog.
        items: the student's. With ``spec.embedding`` its id table is a sum until `close`.
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

    def forward(self, step: Step) -> Tensor:
        """The summed loss over the teacher's lists for the targets of a batch."""
        if self._lists is None:
            return step.users_PD.new_zeros(())
        found = self._lists(*(np.asarray(keys_P) for keys_P in (step.batch.owners_P, step.batch.places_P)))
        rows_PK, scores_PK = (torch.from_numpy(each).to(step.users_PD.device) for each in found)
        loss: Tensor = self._loss(step.users_PD, step.items.all(), rows_PK, scores_PK)
        return loss

    def close(self, encoder: UserEncoder) -> None:
        """Leave one id table, which holds the sum."""
        if self._sums:
            parametrize.remove_parametrizations(encoder.items.ids, "weight", leave_parametrized=True)
