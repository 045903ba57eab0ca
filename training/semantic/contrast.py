"""The contrastive losses of SRA-CL beside a recommendation loss (Cui et al. 2025).

Between users: the state of a history is close to a mix of the states of similar users. Within a user: the states of two
views of a history, in which similar items take the place of some, are close. In every window one of the positions with
a target is drawn in each step; the history is what stands before it. Negatives are the others of the batch. Views and
similar users are read as far back as texts describe a user.

Shape legend: B windows, K neighbours, H width of a state, C width of a text vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.encoder.user_encoder import UserEncoder
from training.loop.auxiliary import Auxiliary, Step
from training.loop.examples import TrainingBatch
from training.objectives.contrastive import NeighbourMix, SemanticSpec, info_nce
from training.semantic.neighbours import Floats, Ints, Neighbours, user_vectors


class NeighbourContrast(Auxiliary):
    """Contrastive losses over semantic neighbours of users and items (SRA-CL).

    Args:
        spec: weights and settings.
        neighbours: of the training part.
        texts_NC: unit vectors of the texts of items; never trained.
        histories: training rows of every user, as ``neighbours`` was found from.
        width: H.
    """

    users_UC: Tensor

    def __init__(
        self,
        spec: SemanticSpec,
        neighbours: Neighbours,
        texts_NC: Floats,
        histories: Sequence[Ints],
        width: int,
    ) -> None:
        super().__init__()
        self.spec = spec
        self._neighbours, self._texts_NC, self._histories = neighbours, texts_NC, histories
        users_UC = user_vectors(texts_NC, histories, spec.newest)
        self.register_buffer("users_UC", torch.from_numpy(users_UC), persistent=False)
        self.mix = NeighbourMix(texts_NC.shape[1], width, spec.dropout) if spec.users else None

    def forward(self, step: Step) -> Tensor:
        """The weighed losses, times the targets of the batch: they are means, as that of the objective becomes one."""
        drawn_B = one_of_each(step.batch)
        owners_B, places_B = (keys_P[drawn_B].numpy() for keys_P in (step.batch.owners_P, step.batch.places_P))
        histories = [self._histories[owner][:place] for owner, place in zip(owners_B, places_B, strict=True)]
        loss = step.states_PH.new_zeros(())
        if self.mix is not None:
            states_BH = step.states_PH[drawn_B.to(step.states_PH.device)].float()
            positives_BH = self._mixed(step.encoder, self._neighbours.of_users(owners_B, places_B), histories)
            loss = loss + self.spec.users * info_nce(states_BH, positives_BH, self.spec.temperature)
        if self.spec.items:
            first, second = self.view(histories), self.view(histories)
            first_BH, second_BH = states_of(step.encoder, [*first, *second]).split(len(first))
            loss = loss + self.spec.items * info_nce(first_BH, second_BH, self.spec.temperature)
        return loss * step.batch.count

    def view(self, histories: Sequence[Ints]) -> list[Ints]:
        """The newest items of histories, each replaced by one of its neighbours with the set probability."""
        cut = [rows[-self.spec.newest :] for rows in histories]
        rows_T = np.concatenate(cut)
        lists_TK = self._neighbours.items_NK[rows_T]
        replaced_T = (torch.rand(len(rows_T)) < self.spec.replaced).numpy()
        picks_T = torch.randint(lists_TK.shape[1], (len(rows_T),)).numpy()
        viewed_T = np.where(replaced_T, lists_TK[np.arange(len(rows_T)), picks_T], rows_T)
        return np.split(viewed_T, np.cumsum([len(rows) for rows in cut])[:-1])

    def _mixed(self, encoder: UserEncoder, users_BK: Ints, histories: Sequence[Ints]) -> Tensor:
        """The positive of each history, [B, H]; a user who is near several histories is encoded once."""
        assert self.mix is not None
        distinct, places = np.unique(users_BK, return_inverse=True)
        near = [self._histories[user][-self.spec.newest :] for user in distinct]
        places_BK = torch.from_numpy(places.reshape(users_BK.shape)).to(encoder.device)
        states_BKH = states_of(encoder, near)[places_BK]
        own_BC = torch.from_numpy(user_vectors(self._texts_NC, histories, self.spec.newest)).to(encoder.device)
        texts_BKC = self.users_UC[torch.from_numpy(users_BK).to(encoder.device)]
        mixed: Tensor = self.mix(own_BC, texts_BKC, states_BKH)
        return mixed


def one_of_each(batch: TrainingBatch) -> Tensor:
    """One position of every window, drawn among those with a target, [B]."""
    counts_B = batch.users_P.unique_consecutive(return_counts=True)[1]
    places_B = (torch.rand(len(counts_B)) * counts_B).long().clamp(max=counts_B - 1)
    drawn: Tensor = counts_B.cumsum(0) - counts_B + places_B
    return drawn


def states_of(encoder: UserEncoder, histories: Sequence[NDArray[np.int64]]) -> Tensor:
    """Pooled states [B, H] of histories of rows, with gradients."""
    batch = encoder.collate([encoder.prepare(rows.tolist()) for rows in histories])
    states: Tensor = encoder.pooling(encoder.hidden(batch), batch.spans).float()
    return states
