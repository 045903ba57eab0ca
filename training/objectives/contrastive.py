"""Contrastive losses over semantic neighbours (SRA-CL, Cui et al. 2025).

Shape legend: B histories, H width of a state, K neighbours of a history, C width of a text vector.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from modeling.spec import Section
from modeling.text_template import TITLE_ALONE, TextTemplate

SLOPE = 0.2
"""Of the leaky ReLU, as in graph attention networks."""


class SemanticSpec(Section):
    """Contrastive losses whose positives are neighbours in the space of a frozen language model; none by default."""

    users: float = Field(0.0, ge=0, description="weight of the loss between a user and similar users (alpha)")
    items: float = Field(
        0.0, ge=0, description="weight of the loss between two views of a history, in which items are replaced by "
        "similar ones (beta)",
    )  # fmt: skip
    count: int = Field(10, ge=1, description="nearest neighbours of a user and of an item (k)")
    replaced: float = Field(0.2, gt=0, lt=1, description="share of items that are replaced in a view")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout on the weights of similar users")
    newest: int = Field(
        20, ge=1, description="number of newest items whose texts describe a user, and that views and similar users "
        "contain",
    )  # fmt: skip
    temperature: float = Field(1.0, gt=0, description="divisor of the inner products of states")
    source: str = Field("minilm", description="frozen language model that encodes the texts of items")
    template: str = Field(TITLE_ALONE, max_length=1024, description="text of an item, as items.text_template")
    random: bool = Field(False, description="control: neighbours are drawn at random")

    @field_validator("template")
    @classmethod
    def _template_is_one(cls, value: str) -> str:
        """Raises `TemplateError`."""
        TextTemplate.parse(value)
        return value

    @property
    def used(self) -> bool:
        """Whether neighbours are needed."""
        return self.users > 0 or self.items > 0


def contrast_logits(first_BH: Tensor, second_BH: Tensor, temperature: float) -> Tensor:
    """Inner products of every vector with its positive, first, and with all others of both sides, [2B, 2B - 1].

    Vectors are not normalised, as in the authors' program, so that the loss depends on their lengths.
    """
    both_QH = torch.cat([first_BH, second_BH])
    products_QQ = both_QH @ both_QH.T / temperature
    rows_Q = torch.arange(len(both_QH), device=both_QH.device)
    positives_Q = rows_Q.roll(len(first_BH))
    others_QQ = torch.ones_like(products_QQ, dtype=torch.bool)
    others_QQ[rows_Q, rows_Q] = others_QQ[rows_Q, positives_Q] = False
    return torch.cat([products_QQ[rows_Q, positives_Q, None], products_QQ[others_QQ].view(len(rows_Q), -1)], 1)


def info_nce(first_BH: Tensor, second_BH: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the positives among `contrast_logits`, from both sides; zero for a single pair."""
    logits = contrast_logits(first_BH, second_BH, temperature)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


class NeighbourMix(nn.Module):
    """The positive of a user: the states of similar users, each with a learned weight.

    ``softmax(LeakyReLU(a · [W e_u ; W e_n]))`` over neighbours, e text vectors, as in graph attention (Veličković et
    al. 2018); then dropout, so that in training the weights do not sum to one.

    Args:
        text_dim: C.
        width: H, of a state and of the mapped text vectors.
        dropout: on the weights.
    """

    def __init__(self, text_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.map = nn.Linear(text_dim, width, bias=False)
        self.score = nn.Linear(2 * width, 1, bias=False)
        for layer in (self.map, self.score):
            nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(2))

    def weights(self, user_BC: Tensor, neighbours_BKC: Tensor) -> Tensor:
        """Weights [B, K] before dropout; each row sums to one."""
        mapped_BKH = self.map(neighbours_BKC)
        own_BKH = self.map(user_BC)[:, None].expand_as(mapped_BKH)
        scores_BK = self.score(torch.cat([own_BKH, mapped_BKH], -1))[..., 0]
        return F.leaky_relu(scores_BK, SLOPE).softmax(-1)

    def forward(self, user_BC: Tensor, neighbours_BKC: Tensor, states_BKH: Tensor) -> Tensor:
        """Positives [B, H]."""
        weights_BK = F.dropout(self.weights(user_BC, neighbours_BKC), self.dropout, self.training)
        return torch.einsum("bk,bkh->bh", weights_BK, states_BKH)
