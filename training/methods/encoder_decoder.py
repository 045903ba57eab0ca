"""Trains an encoder-decoder to generate the semantic ID of a user's next item (TIGER, Rajput et al. 2023).

The encoder is bidirectional, so a history is an example for its next item only: every prefix of a sequence is an
example of its own. All IDs have the same length, so a batch is built with array operations instead of token by token.

Shape legend: B examples, I items of the longest history, L codes of an item, R = 1 + I * L positions of the encoder,
V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.dropout import Dropout
from modeling.encoder.prompt import TitleTokens
from training.loop.examples import Window
from training.loop.module import TrainedModule
from training.objectives.trie_softmax import TrieSoftmax


@dataclass(frozen=True)
class EncoderDecoderBatch:
    """A batch of histories and next items.

    Attributes:
        ids_BR: token ids that the encoder reads.
        mask_BR: whether each token is not padding; None: there is no padding.
        targets_BL: codes of the next items.
        states_BL: trie state before each code; None if the loss does not use the trie.
    """

    ids_BR: Tensor
    mask_BR: Tensor | None
    targets_BL: Tensor
    states_BL: Tensor | None = None

    @property
    def count(self) -> int:
        """Codes that the loss is summed over."""
        return self.targets_BL.numel()


class EncoderDecoderModule(TrainedModule):
    """Autoregressive loss on the codes of the next item.

    Args:
        model: a Hugging Face encoder-decoder model with its head.
        names: codes of every item of the catalog as tokens, L of each.
        start: token that decoding begins with; also the unknown-user token.
        users_U: first token of the histories of each user.
        dropout: on the embeddings that the encoder reads, in addition to the model's own dropout.
        user_dropout: share of training histories whose user token is replaced by the unknown-user token.
        children: softmax over the codes allowed by the trie; None: over the whole vocabulary.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        start: int,
        users_U: NDArray[np.int64],
        dropout: float = 0.0,
        user_dropout: float = 0.0,
        children: TrieSoftmax | None = None,
    ) -> None:
        super().__init__()
        self.children_softmax = children
        self.model, self.dropout = model, Dropout(dropout)
        self._start = start
        self._codes_NL = names.tokens.reshape(len(names), -1).astype(np.int64)
        self._users_U, self._user_dropout = users_U, user_dropout

    @property
    def last_only(self) -> bool:
        """See `TrainedModule.last_only`: each example has one target item."""
        return True

    @property
    def item_lengths_N(self) -> None:
        """See `TrainedModule.item_lengths_N`: None, since all items have the same length."""
        return

    def pretrained(self, name: str) -> bool:
        """See `TrainedModule.pretrained`: the network is trained from scratch."""
        return False

    def collate(self, windows: Sequence[Window]) -> EncoderDecoderBatch:
        """Histories and next items as tokens, padded on the right."""
        read_B = np.array([len(window.rows) - 1 for window in windows])
        places_X = np.arange(read_B.max() + 1)
        rows_BX = np.zeros((len(windows), len(places_X)), np.int64)
        rows_BX[places_X <= read_B[:, None]] = np.concatenate([window.rows for window in windows])
        users_B1 = self._users_U[[window.user for window in windows]][:, None]
        ids_BR = np.concatenate([users_B1, self._codes_NL[rows_BX[:, :-1]].reshape(len(windows), -1)], axis=1)
        targets_BL = self._codes_NL[rows_BX[np.arange(len(windows)), read_B]]
        mask_BR = None
        if (read_B != read_B.max()).any():
            mask_BR = torch.from_numpy(np.arange(ids_BR.shape[1]) <= read_B[:, None] * self._codes_NL.shape[1])
        states_BL = None
        if (children := self.children_softmax) is not None:
            states_BL = torch.from_numpy(np.stack([children.states(int(window.rows[-1])) for window in windows]))
        return EncoderDecoderBatch(torch.from_numpy(ids_BR), mask_BR, torch.from_numpy(targets_BL), states_BL)

    def forward(self, batch: EncoderDecoderBatch, progress: float = 0.0) -> Tensor:
        """Summed negative log probability of the codes."""
        model = cast(Any, self.model)
        words = model.get_input_embeddings()
        device = words.weight.device
        ids_BR, targets_BL = batch.ids_BR.to(device), batch.targets_BL.to(device)
        if self.training and self._user_dropout:
            nobody_B = torch.rand(len(ids_BR), device=device) < self._user_dropout
            ids_BR = torch.cat([ids_BR[:, :1].masked_fill(nobody_B[:, None], self._start), ids_BR[:, 1:]], dim=1)
        mask_BR = None if batch.mask_BR is None else batch.mask_BR.to(device)
        logits_BLV = model(
            inputs_embeds=self.dropout(words(ids_BR)),
            attention_mask=mask_BR,
            decoder_input_ids=F.pad(targets_BL[:, :-1], (1, 0), value=self._start),
            use_cache=False,
        ).logits
        logits_PV, targets_P = logits_BLV.float().flatten(0, 1), targets_BL.flatten()
        if (children := self.children_softmax) is None or batch.states_BL is None:
            return F.cross_entropy(logits_PV, targets_P, reduction="sum")
        states_P = batch.states_BL.to(device).flatten()
        return cast(Tensor, children(logits_PV[:, children.alphabet_A], targets_P, states_P))
