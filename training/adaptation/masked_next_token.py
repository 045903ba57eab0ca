"""Masked next-token prediction (BehnamGhader et al. 2024, LLM2Vec, section 2.2): a decoder learns to look both ways.

Some tokens are hidden. Each is predicted from the state one position before it, as the model's head was trained to do,
while attention sees the whole text.

Shape legend: B texts, T tokens, M hidden tokens, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.with_head import load_with_head
from training.adaptation.backbones import LORA, Adapted
from training.adaptation.spec import AdaptationSpec
from training.adaptation.steps import train_steps
from training.adaptation.texts import TextBatch, Texts

MASK = "_"
"""Stands in a hidden token's place, as published: decoders have no token for it."""
HIDDEN_BY_MASK, HIDDEN_BY_ANY = 0.8, 0.1
"""Shares of the predicted tokens that MASK replaces and that a random one replaces (BERT's); the rest stay."""


@dataclass
class MaskedNextToken:
    """The stage of a run; see `training.loop.stages.Stage`. Its figures are losses on texts that it did not see."""

    adapted: Adapted
    texts: Texts
    spec: AdaptationSpec
    seed: int
    name: str = "masked-next-token"
    objective: str = "cross-entropy of masked tokens, each from the state before it"

    def run(self, work: Path) -> dict[str, Any]:
        """Train a LoRA, merge it and store the backbone in ``work``."""
        model = load_with_head(self.adapted.backbone, folder=self.adapted.folder, download=self.adapted.download)
        mask = self.adapted.pieces().fixed([MASK])[0][-1]
        vocabulary = cast(Any, model).config.get_text_config().vocab_size
        torch.manual_seed(self.seed)
        body, head = cast(Any, model).base_model, cast(Any, model).get_output_embeddings().requires_grad_(False)
        tuned = LORA.attach(body)

        def loss_of(batch: TextBatch) -> Tensor:
            given_BT, hidden_BT = hide(batch, self.spec.masked, mask, vocabulary)
            states_BTH = tuned(input_ids=given_BT, attention_mask=batch.mask_BT, use_cache=False).last_hidden_state
            return masked_loss(states_BTH, head, batch.tokens_BT, hidden_BT)

        before = self._held_out(loss_of, tuned)
        losses = train_steps(
            tuned, self.texts.trained, loss_of, collate=TextBatch.of, steps=self.spec.masked_steps,
            count=self.spec.texts, rate=self.spec.rate, seed=self.seed, stage=self.name,
        )  # fmt: skip
        after = self._held_out(loss_of, tuned)
        self.adapted.store(LORA.merge(tuned), work)
        return {"loss_before": before, "loss_after": after, "steps": len(losses)}

    def restore(self, work: Path) -> None:
        """Go on with the backbone that it left."""
        self.adapted.take(work)

    def _held_out(self, loss_of: Any, model: nn.Module) -> float:
        model.eval()
        return held_out_loss(loss_of, self.texts.held_out, self.spec.texts, self.seed)


@torch.no_grad()
def held_out_loss(loss_of: Any, texts: Sequence[NDArray[np.int64]], count: int, seed: int) -> float:
    """Mean loss of batches of texts; what is drawn is the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = [float(loss_of(TextBatch.of(texts[at : at + count]))) for at in range(0, len(texts), count)]
    return round(float(np.mean(found)), 6)


def hide(batch: TextBatch, share: float, mask: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] with some hidden, and which are to be predicted [B, T]: never the first, nothing is before it."""
    hidden_BT = (torch.rand(batch.tokens_BT.shape) < share) & batch.mask_BT.bool()
    hidden_BT[:, 0] = False
    if not bool(hidden_BT.any()):  # texts are two tokens long at least
        hidden_BT[0, 1] = True
    how_BT = torch.rand(batch.tokens_BT.shape)
    given_BT = torch.where(hidden_BT & (how_BT < HIDDEN_BY_MASK), mask, batch.tokens_BT)
    others_BT = torch.randint(vocabulary, batch.tokens_BT.shape)
    random_BT = hidden_BT & (how_BT >= HIDDEN_BY_MASK) & (how_BT < HIDDEN_BY_MASK + HIDDEN_BY_ANY)
    return torch.where(random_BT, others_BT, given_BT), hidden_BT


def masked_loss(states_BTH: Tensor, head: nn.Module, tokens_BT: Tensor, hidden_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the hidden tokens; that at position i is predicted from the state at i - 1."""
    before_BT = F.pad(hidden_BT[:, 1:], (0, 1))
    logits_MV = head(states_BTH[before_BT]).float()
    return F.cross_entropy(logits_MV, tokens_BT[hidden_BT])
