"""From the backbone's state to the item space."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modeling.dropout import Dropout
from modeling.spec import ProjectorSpec


class Projector(nn.Module):
    """States [P, H] to vectors [P, D]: identity, linear, or one hidden layer of width H.

    With ``residual`` the vectors of the newest items are added with a learned weight, so that "more of the same" needs
    no learning and the backbone learns what differs from it. With several of them, each step back counting less, that
    alone is a nearest-neighbour recommender over the history.
    """

    def __init__(self, spec: ProjectorSpec, *, hidden_size: int, dim: int) -> None:
        super().__init__()
        self.dropout = Dropout(spec.dropout)
        if spec.kind == "identity":
            self.map: nn.Module = nn.Identity()
        elif spec.kind == "linear":
            self.map = nn.Linear(hidden_size, dim)
        else:
            self.map = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, dim))
        self.newest_weight = nn.Parameter(torch.tensor(0.5)) if spec.residual else None

    def forward(self, states_PH: Tensor, recent_PD: Tensor | None = None) -> Tensor:
        """``recent_PD``: what the newest items read sum up to; used only with ``residual``."""
        vectors_PD: Tensor = self.map(self.dropout(states_PH))
        if self.newest_weight is not None and recent_PD is not None:
            vectors_PD = vectors_PD + self.newest_weight * recent_PD
        return vectors_PD
