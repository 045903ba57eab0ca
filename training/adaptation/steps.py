"""The steps of a stage over texts: AdamW on what is trained, a short warm-up, then a rate that falls to zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from training.loop.budget import check_time

WARMUP, CLIP = 0.1, 1.0
Text = TypeVar("Text")
Batch = TypeVar("Batch")


def train_steps(
    model: nn.Module,
    texts: Sequence[Text],
    loss_of: Callable[[Batch], Tensor],
    *,
    collate: Callable[[Sequence[Text]], Batch],
    steps: int,
    count: int,
    rate: float,
    seed: int,
    stage: str,
) -> list[float]:
    """Train ``model`` on ``count`` texts a step, drawn without repeats in a step; the losses.

    Raises:
        OutOfTime: the run's budget ended.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    warmup = max(1, round(WARMUP * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
    )
    rng, losses = np.random.default_rng([seed, 7]), []
    model.train()
    for _ in range(steps):
        check_time(f"the stage {stage!r}")
        drawn = rng.choice(len(texts), min(count, len(texts)), replace=False).tolist()
        loss = loss_of(collate([texts[number] for number in drawn]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    model.eval()
    return losses
