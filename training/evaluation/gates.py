"""Variation of an adapter's gates between users; gates that are equal for all users have no effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modeling.backbone.adapters.ilora import GatedBackbone
from modeling.encoder.user_encoder import UserEncoder

BATCH, USERS = 256, 5000


def gates_of(encoder: UserEncoder, histories: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
    """Gates [U, E] of users by their histories of catalog rows; ``encoder`` has a gated adapter."""
    assert isinstance(encoder.backbone, GatedBackbone) and encoder.history_state is not None
    found = []
    for start in range(0, len(histories), BATCH):
        prompts = [encoder.prepare(np.asarray(rows).tolist()) for rows in histories[start : start + BATCH]]
        with torch.inference_mode():
            found.append(encoder.backbone.gates(encoder.history_state(prompts)).float().cpu().numpy())
    return np.concatenate(found)


def gate_figures(encoder: UserEncoder, histories: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Mean entropy of the gates of a user in nats, the largest there can be, and the variance of a gate between users,
    mean over experts; the mean gate of each expert. Of the first `USERS` histories."""
    gates_UE = gates_of(encoder, histories[:USERS]).astype(np.float64)
    entropy_U = -(gates_UE * np.log(np.maximum(gates_UE, 1e-30))).sum(1)
    return {
        "entropy": round(float(entropy_U.mean()), 6),
        "largest_entropy": round(math.log(gates_UE.shape[1]), 6),
        "variance_between_users": round(float(gates_UE.var(0).mean()), 9),
        "means": [round(float(mean), 6) for mean in gates_UE.mean(0)],
        "users": len(gates_UE),
    }
