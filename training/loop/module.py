"""The trained module: user encoder plus objective, from a batch of windows to a summed loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.hidden_dropout import NoDropout, drop_hidden
from modeling.encoder.user_encoder import UserEncoder
from training.loop.examples import TrainingBatch, Window, collate
from training.objectives.anchor import anchor_loss, anchor_weight
from training.objectives.softmax import full_softmax, sampled_softmax
from training.recipes.base import ObjectiveSpec, RecipeError

LARGEST_SCALE = 100.0
"""The learned scale is kept below this: a sharper softmax over cosines only overfits."""


class Counted(Protocol):
    """A batch that says how many targets its loss is summed over."""

    @property
    def count(self) -> int:
        """Targets."""
        ...


class TrainedModule(nn.Module):
    """What the trainer asks of a module besides the summed loss ``forward(batch, progress)``."""

    def collate(self, windows: Sequence[Window]) -> Counted:
        """Windows to one batch."""
        raise NotImplementedError

    @property
    def item_lengths_N(self) -> NDArray[np.int64] | None:
        """Positions that each item takes; None: one each."""
        raise NotImplementedError

    @property
    def last_only(self) -> bool:
        """Whether only the last item of a window has a loss, so that each target needs a window of its own."""
        return False

    @property
    def selected_on(self) -> str:
        """The figure on validation that the best epoch has the highest of."""
        return "ndcg@10"

    def pretrained(self, name: str) -> bool:
        """Whether a parameter is one of the language model, or of the adapter on it."""
        raise NotImplementedError

    def close(self) -> None:
        """The end of training: the model is as it came, apart from its weights."""
        return


class RetrievalModule(TrainedModule):
    """Loss of one recipe.

    An item that nobody has chosen in training is never a target, so as a negative it would only be pushed away from
    everybody. Where items have titles it is left out of the softmax and has the id vector of UNKNOWN, like an item
    that is added later: its title speaks for it. An id alone says nothing, so without titles it stays a negative.

    Args:
        encoder: what is trained.
        objective: full or sampled softmax, and the pull.
        popularity_N: training interactions per item.
        anchor_ND: the id model's table, for the pull.
    """

    log_draws_N: Tensor
    anchor_ND: Tensor
    chosen_C: Tensor
    places_N: Tensor

    def __init__(
        self,
        encoder: UserEncoder,
        objective: ObjectiveSpec,
        *,
        popularity_N: NDArray[np.int64],
        anchor_ND: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        candidates_N = popularity_N > 0 if encoder.items.text_map is not None else np.ones(len(popularity_N), bool)
        self.register_buffer("chosen_C", torch.from_numpy(np.flatnonzero(candidates_N)), False)
        self.register_buffer("places_N", torch.from_numpy(np.cumsum(candidates_N) - 1), False)
        draws_N = candidates_N * (popularity_N.astype(np.float64) + 1.0) ** objective.popularity_power
        draws_N *= objective.negatives / draws_N.sum()
        self.register_buffer("log_draws_N", torch.from_numpy(draws_N).log().float(), False)
        self.register_buffer("anchor_ND", torch.from_numpy(anchor_ND) if anchor_ND is not None else None, False)
        backbone = encoder.spec.backbone
        try:  # our own transformer drops by itself
            self._hooks = [] if backbone.own else drop_hidden(encoder.backbone, backbone.dropout)
        except NoDropout as error:
            raise RecipeError(str(error)) from error

    def close(self) -> None:
        """The end of training: the backbone is as it came, apart from its weights."""
        for hook in self._hooks:
            hook.remove()

    def collate(self, windows: Sequence[Window]) -> TrainingBatch:
        """Windows to one padded batch of prompts."""
        return collate(self.encoder, windows)

    @property
    def item_lengths_N(self) -> NDArray[np.int64] | None:
        """Positions that each item takes in a prompt."""
        return self.encoder.prompts.item_lengths

    @torch.no_grad()
    def settle(self) -> None:
        """Give items that are left out of the loss the id vector of UNKNOWN, as it is now."""
        table = self.encoder.items.ids.weight
        left_out_N = torch.ones(len(table), dtype=torch.bool, device=table.device)
        left_out_N[self.chosen_C] = False
        table[left_out_N] = table[-1].clone()

    def pretrained(self, name: str) -> bool:
        """The backbone and its adapter; our own small transformer is trained from scratch."""
        return name.startswith("encoder.backbone.") and not self.encoder.spec.backbone.own

    def forward(self, batch: TrainingBatch, progress: float = 0.0) -> Tensor:
        """Summed loss over the batch's targets; ``progress`` in [0, 1] moves the pull's weight."""
        encoder, device = self.encoder, self.encoder.device
        table_ND = encoder.items.table()
        states_BTH = encoder.hidden(batch.prompts)
        states_PH = states_BTH[batch.users_P.to(device), batch.boundaries_P.to(device)]
        users_PD = encoder.project(states_PH, batch.recent_PR.to(device), table_ND)
        items_ND = encoder.items.finish(table_ND[: encoder.items.size]).float()
        scaled_PD = users_PD * encoder.log_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
        loss = self._softmax(scaled_PD, items_ND, batch.targets_P.to(device))
        weight = anchor_weight(self.objective.pull, progress, self.objective.pull_share)
        if weight and self.anchor_ND is not None:
            pulled = anchor_loss(encoder.items.ids.weight[: encoder.items.size], self.anchor_ND)
            loss = loss + weight * pulled * len(batch.targets_P) * encoder.spec.items.dim
        return loss

    def _softmax(self, users_PD: Tensor, items_ND: Tensor, targets_P: Tensor) -> Tensor:
        if self.objective.kind == "full":
            if len(self.chosen_C) < len(items_ND):
                items_ND, targets_P = items_ND[self.chosen_C], self.places_N[targets_P]
            return full_softmax(users_PD, items_ND, targets_P, label_smoothing=self.objective.label_smoothing)
        negatives_K = torch.multinomial(self.log_draws_N.exp(), self.objective.negatives, replacement=True)
        return sampled_softmax(users_PD, items_ND, targets_P, negatives_K, self.log_draws_N)
