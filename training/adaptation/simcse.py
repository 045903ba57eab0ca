"""Unsupervised SimCSE (Gao et al. 2021), the last stage of LLM2Vec without labels: a text is its own positive.

Every text is encoded twice with other dropout on the attention weights; the other texts of the step are negatives.

Shape legend: B texts, T tokens, H width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.loading import load_backbone
from modeling.encoder.pooling import Spans, pooling_of
from modeling.spec import PoolingSpec
from training.adaptation.backbones import LORA, Adapted
from training.adaptation.spec import AdaptationSpec
from training.adaptation.steps import train_steps
from training.adaptation.texts import TextBatch, Texts
from training.recipe import RecipeError

FIGURES = 10
"""Steps at either end whose mean loss is reported."""


@dataclass
class SimCse:
    """The stage of a run; see `training.loop.stages.Stage`."""

    adapted: Adapted
    texts: Texts
    spec: AdaptationSpec
    pooling: PoolingSpec
    seed: int
    name: str = "simcse"
    objective: str = "contrastive: two dropout masks of a text against the other texts of a step"

    def run(self, work: Path) -> dict[str, Any]:
        """Train a LoRA, merge it and store the backbone in ``work``."""
        body, _ = load_backbone(self.adapted.backbone, folder=self.adapted.folder, download=self.adapted.download)
        drop_attention(body, self.spec.dropout)
        torch.manual_seed(self.seed)
        tuned, pool = LORA.attach(body), pooling_of(self.pooling)

        def loss_of(batch: TextBatch) -> Tensor:
            first_BH, second_BH = (
                pool(
                    tuned(input_ids=batch.tokens_BT, attention_mask=batch.mask_BT, use_cache=False).last_hidden_state,
                    whole(batch.mask_BT),
                )
                for _ in range(2)
            )
            return contrast(first_BH, second_BH, batch, self.spec.temperature)

        losses = train_steps(
            tuned, self.texts.trained, loss_of, collate=TextBatch.of, steps=self.spec.simcse_steps,
            count=self.spec.texts, rate=self.spec.rate, seed=self.seed, stage=self.name,
        )  # fmt: skip
        drop_attention(body, 0.0)
        self.adapted.store(LORA.merge(tuned), work)
        ends = losses[:FIGURES], losses[-FIGURES:]
        first, last = (round(float(np.mean(part)), 6) for part in ends)
        return {"loss_first_steps": first, "loss_last_steps": last, "steps": len(losses)}

    def restore(self, work: Path) -> None:
        """Go on with the backbone that it left."""
        self.adapted.take(work)


def contrast(first_BH: Tensor, second_BH: Tensor, batch: TextBatch, temperature: float) -> Tensor:
    """Mean cross-entropy of each text's second view among the second views of all; equal texts are no negatives."""
    logits_BB = F.normalize(first_BH.float(), dim=-1) @ F.normalize(second_BH.float(), dim=-1).T / temperature
    same_BB = (batch.tokens_BT[:, None] == batch.tokens_BT[None]).all(-1)
    own_BB = torch.eye(len(same_BB), dtype=torch.bool, device=same_BB.device)
    logits_BB = logits_BB.masked_fill(same_BB & ~own_BB, -torch.inf)
    return F.cross_entropy(logits_BB, torch.arange(len(logits_BB), device=logits_BB.device))


def whole(mask_BT: Tensor) -> Spans:
    """Spans of all positions that are not padding, which stands on the right."""
    first_B = torch.zeros(len(mask_BT), dtype=torch.long, device=mask_BT.device)
    last_B = mask_BT.sum(1) - 1
    return Spans(torch.arange(len(mask_BT), device=mask_BT.device), first_B, first_B, last_B, last_B)


def drop_attention(model: nn.Module, rate: float) -> None:
    """Dropout on the attention weights of a decoder.

    Raises:
        RecipeError: its attention has no such setting, and two views of a text would be one.
    """
    parts = [part for part in model.modules() if isinstance(getattr(part, "attention_dropout", None), float | int)]
    if not parts:
        raise RecipeError(
            f"method.adaptation.simcse_steps needs dropout on attention weights, and {type(model).__name__} has none"
        )
    for part in parts:
        cast(Any, part).attention_dropout = rate
