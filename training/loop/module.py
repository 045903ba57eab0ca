"""The trained module: user encoder plus objective, from a batch of windows to a summed loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.adapters.condition import conditioned_on
from modeling.backbone.hidden_dropout import NoDropout, drop_hidden
from modeling.encoder.history_state import HistoryState
from modeling.encoder.item_tower import scale_of
from modeling.encoder.user_encoder import UserEncoder
from training.loop.auxiliary import Auxiliary, Step
from training.loop.examples import TrainingBatch, Window, collate
from training.loop.momentum import MomentumQueue
from training.objectives.anchor import anchor_loss, anchor_weight
from training.objectives.base import Candidates, ObjectiveSpec, objective_class
from training.objectives.in_batch import InBatchSoftmax
from training.recipe import RecipeError


class Counted(Protocol):
    """A batch that says how many targets its loss is summed over."""

    @property
    def count(self) -> int:
        """Targets."""
        ...


class TrainedModule(nn.Module):
    """Interface of a module for the trainer, besides the summed loss ``forward(batch, progress)``."""

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
    def fixed_windows(self) -> bool:
        """Whether every epoch reads the same windows; else their cuts move."""
        return False

    @property
    def most_windows(self) -> int | None:
        """Windows that are read, drawn once from all; None: all."""
        return None

    @property
    def selected_on(self) -> str:
        """Validation metric whose maximum selects the epoch."""
        return "ndcg@10"

    def pretrained(self, name: str) -> bool:
        """Whether a parameter is one of the language model, or of the adapter on it."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what training added to the model besides its weights, after training."""
        return

    def carried(self) -> dict[str, Tensor]:
        """State that changes from step to step besides the weights, for checkpoints."""
        return {}

    def carry(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `carried` gave."""
        return


class RetrievalModule(TrainedModule):
    """Loss of one recipe.

    An item without training interactions is never a target, so as a negative it would only be pushed away from
    everybody. Where items have titles it is left out of the softmax and has the id vector of UNKNOWN, like an item
    that is added later: its title speaks for it. An id alone says nothing, so without titles it stays a negative.

    Args:
        encoder: what is trained.
        objective: the loss, and the pull.
        popularity_N: training interactions per item.
        shares_N: how often each item is a target, as a share of all targets; None: as popularity says.
        anchor_ND: the id model's table, for the pull.
        condition: what a gated adapter reads beside a window.
        auxiliaries: losses beside the objective.

    Attributes:
        network: whether the backbone and the auxiliaries take part; without them a user's vector is that of the newest
            items alone.
    """

    network: bool = True
    anchor_ND: Tensor
    chosen_N: Tensor

    def __init__(
        self,
        encoder: UserEncoder,
        objective: ObjectiveSpec,
        *,
        popularity_N: NDArray[np.int64],
        shares_N: NDArray[np.float64] | None = None,
        anchor_ND: NDArray[np.float32] | None = None,
        condition: Callable[[Window], NDArray[np.float32]] | None = None,
        auxiliaries: Sequence[Auxiliary] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.auxiliaries = nn.ModuleList(auxiliaries)
        self.objective = objective
        self._condition = condition
        chosen_N = popularity_N > 0 if encoder.items.text_map is not None else np.ones(len(popularity_N), bool)
        self.register_buffer("chosen_N", torch.from_numpy(chosen_N), False)
        if shares_N is None:
            shares_N = popularity_N / max(1, popularity_N.sum())
        self.loss = objective_class(objective.kind)(objective, Candidates(popularity_N, chosen_N, shares_N))
        self._queue = MomentumQueue(encoder, objective.queue, objective.momentum) if objective.queue else None
        self.register_buffer("anchor_ND", torch.from_numpy(anchor_ND) if anchor_ND is not None else None, False)
        backbone = encoder.spec.backbone
        gate = encoder.history_state
        some_1C = torch.zeros(1, gate.width) if isinstance(gate, HistoryState) else None
        try:  # our own transformer drops by itself
            with conditioned_on(some_1C):
                self._hooks = [] if backbone.own else drop_hidden(encoder.backbone, backbone.dropout)
        except NoDropout as error:
            raise RecipeError(str(error)) from error

    def close(self) -> None:
        """The end of training: the backbone is as it came, apart from its weights, and there is one id table."""
        for hook in self._hooks:
            hook.remove()
        for auxiliary in self.auxiliaries:
            cast(Auxiliary, auxiliary).close(self.encoder)

    def collate(self, windows: Sequence[Window]) -> TrainingBatch:
        """Windows to one padded batch of prompts."""
        return collate(self.encoder, windows, self._condition, with_seen=self.objective.mask_seen)

    @property
    def last_only(self) -> bool:
        """Whether a state is that of a whole history only."""
        return not self.encoder.capabilities.every_boundary

    @property
    def item_lengths_N(self) -> NDArray[np.int64] | None:
        """Positions that each item takes in a prompt."""
        return self.encoder.prompts.item_lengths

    @torch.no_grad()
    def settle(self) -> None:
        """Bring what is not trained itself up to the weights as they are now: items that are left out of the loss have
        the id vector of UNKNOWN, and items that are encoded from titles are encoded."""
        if self.encoder.spec.items.tower == "encoder":
            self.encoder.refresh_items()
            return
        self.encoder.items.forget(~self.chosen_N)

    def pretrained(self, name: str) -> bool:
        """The backbone and its adapter; our own small transformer is trained from scratch."""
        return name.startswith("encoder.backbone.") and not self.encoder.spec.backbone.own

    def forward(self, batch: TrainingBatch, progress: float = 0.0) -> Tensor:
        """Summed loss over the batch's targets; ``progress`` in [0, 1] moves the pull's weight."""
        with ExitStack() as around:
            for auxiliary in self.auxiliaries:
                around.enter_context(cast(Auxiliary, auxiliary).computing())
            return self._loss(batch, progress)

    def _keys(self, targets_P: Tensor) -> Tensor | None:
        """Vectors of the batch's targets for the queue, none of which is a negative yet; None without one."""
        if self._queue is None or not self.training:
            return None
        cast(InBatchSoftmax, self.loss).remembered = self._queue.held
        return self._queue.encode(targets_P)

    def carried(self) -> dict[str, Tensor]:
        """See `TrainedModule.carried`."""
        return {} if self._queue is None else self._queue.state()

    def carry(self, state: Mapping[str, Tensor]) -> None:
        """See `TrainedModule.carry`."""
        if self._queue is not None:
            self._queue.restore(state)

    def _loss(self, batch: TrainingBatch, progress: float) -> Tensor:
        encoder, device = self.encoder, self.encoder.device
        keys_PD = self._keys(batch.targets_P.to(device))
        items = _Items(encoder)
        states_PH = self._states(batch) if self.network else None
        users_PD = encoder.project(states_PH, batch.recent_PR.to(device), items.table_ND)
        scaled_PD = users_PD * scale_of(encoder.log_scale)
        seen_S2 = None if batch.seen_S2 is None else batch.seen_S2.to(device)
        loss: Tensor = self.loss(scaled_PD, items, batch.targets_P.to(device), seen_S2)
        if self._queue is not None and keys_PD is not None:
            self._queue.add(keys_PD, batch.targets_P.to(device))
        if states_PH is not None:
            step = Step(encoder, batch, states_PH, scaled_PD, items)
            for auxiliary in self.auxiliaries:
                loss = loss + auxiliary(step)
        weight = anchor_weight(self.objective.pull, progress, self.objective.pull_share)
        if weight and self.anchor_ND is not None:
            pulled = anchor_loss(encoder.items.ids.weight[: encoder.items.size], self.anchor_ND)
            loss = loss + weight * pulled * len(batch.targets_P) * encoder.spec.items.dim
        return loss

    def _states(self, batch: TrainingBatch) -> Tensor:
        encoder = self.encoder
        if not self.last_only:
            return encoder.boundary_states(batch.prompts, batch.users_P, batch.boundaries_P)
        return cast(Tensor, encoder.pooling(encoder.hidden(batch.prompts), batch.prompts.spans))


class _Items:
    """Vectors of the items of one step; see `training.objectives.base.ItemVectors`."""

    def __init__(self, encoder: UserEncoder) -> None:
        self._encoder = encoder
        items, nameless_N = encoder.items, None
        if encoder.training and items.spec.id_dropout:
            nameless_N = torch.rand(items.size + 1, device=encoder.device) < items.spec.id_dropout
        self.table_ND = items.table(nameless_N)

    def all(self) -> Tensor:
        items = self._encoder.items
        return items.with_bias(items.finish(self.table_ND[: items.size]), slice(items.size)).float()

    def of(self, rows_R: Tensor) -> Tensor:
        if self._encoder.spec.items.tower == "encoder":
            return self._encoder.encode_items(rows_R.tolist()).float()
        items = self._encoder.items
        return items.with_bias(items.finish(self.table_ND[rows_R]), rows_R).float()
