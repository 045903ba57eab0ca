"""From the backbone's state to the item space."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from modeling.backbone.dropout import Dropout
from modeling.spec import ProjectorSpec


class Projector(nn.Module):
    """States [P, H] to vectors [P, D]: identity, linear, or one hidden layer of width H; or no states at all.

    With ``residual`` the vectors of the newest items are added with learned weights, so that "more of the same" needs
    no learning and the backbone learns what differs from it. With several of them, each step back counting less at
    first, that alone is a nearest-neighbour recommender over the history (``none``): a factored item-item model with
    learned recency, near FISM (Kabbur et al. 2013).
    """

    def __init__(self, spec: ProjectorSpec, *, hidden_size: int, dim: int) -> None:
        super().__init__()
        self.dropout = Dropout(spec.dropout)
        self.map: nn.Module | None = None
        if spec.kind == "identity" or spec.side == "items":
            self.map = nn.Identity()
        elif spec.kind == "linear":
            self.map = nn.Linear(hidden_size, dim)
        elif spec.kind == "mlp":
            self.map = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, dim))
        # One weight is a number and no list, as it has always been in artifacts.
        steps_R = torch.arange(spec.recent) if spec.recent > 1 else torch.tensor(0)
        self.newest_weight = nn.Parameter(0.5 * spec.decay**steps_R) if spec.residual else None

    def forward(self, states_PH: Tensor | None, recent_PD: Tensor | None = None) -> Tensor:
        """``states_PH``: None adds nothing. ``recent_PD``: the weighted sum of the newest items read (`summed`); None
        without ``residual``."""
        if self.map is None or states_PH is None:
            assert recent_PD is not None, "without a network and a residual there is no vector"
            return recent_PD
        vectors_PD: Tensor = self.map(self.dropout(states_PH))
        return vectors_PD if recent_PD is None else vectors_PD + recent_PD

    @torch.no_grad()
    def start_from_zero(self) -> None:
        """Make the map give zero vectors: a user's vector is that of the newest items until the map is trained."""
        last = self.map[-1] if isinstance(self.map, nn.Sequential) else self.map
        assert isinstance(last, nn.Linear), "an identity has no weights"
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def summed(self, recent_PRD: Tensor, recent_PR: Tensor) -> Tensor:
        """The sum [P, D] of the vectors of the newest items, each with its weight.

        Args:
            recent_PRD: the vectors, newest first.
            recent_PR: their rows; -1 stands for no item.
        """
        assert self.newest_weight is not None, "without a residual nothing is added"
        weights_PR = (recent_PR >= 0) * self.newest_weight
        return torch.einsum("prd,pr->pd", recent_PRD, weights_PR.to(recent_PRD.dtype))


class ItemMap(nn.Module):
    """Vectors of items [N, D] to the space in which they are compared [N, W]: linear, or one hidden layer of width D.

    Args:
        spec: kind of the map, and which sides have one.
        dim: D.
        hidden_size: of the backbone's states, W where these are not mapped.
    """

    def __init__(self, spec: ProjectorSpec, *, dim: int, hidden_size: int) -> None:
        super().__init__()
        self.width = hidden_size if spec.side == "items" else spec.common
        self._size = math.sqrt(dim)  # elements of about unit size go in, and vectors of about unit length come out
        last = input_map(dim, self.width, 1 / math.sqrt(self.width))
        self.map = last if spec.kind == "linear" else nn.Sequential(nn.Linear(dim, dim), nn.GELU(), last)

    def forward(self, vectors_ND: Tensor) -> Tensor:
        """The mapped vectors, not normalised."""
        mapped: Tensor = self.map(vectors_ND * self._size)
        return mapped


def input_map(width: int, hidden_size: int, size: float) -> nn.Linear:
    """The other way, into a backbone: from vectors with elements of unit size to vectors with elements of ``size``."""
    layer = nn.Linear(width, hidden_size, bias=False)
    nn.init.normal_(layer.weight, std=size / math.sqrt(width))
    return layer
