"""Contrastive loss over views of a history that a language model makes (after CLLMRec, Lu et al. 2025).

Shape legend: V histories, H width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from modeling.spec import Section

TITLES = "{titles}"
SUMMARY = (
    "Chosen: garden spade; tomato seeds; watering can.\nTaste: gardening, vegetables, outdoor work\n\n"
    "Chosen: sleeping bag; trail map; head torch.\nTaste: hiking, camping, adventure\n\n"
    f"Chosen: {TITLES}.\nTaste:"
)
"""Examples show a small model what is asked for, which follows no instruction."""


class ViewsSpec(Section):
    """Contrastive losses whose positives a language model that writes has made; none by default."""

    texts: float = Field(0.0, ge=0, description="weight of the loss between a history and the text written about it")
    drops: float = Field(
        0.0, ge=0, description="weight of the loss between a history and itself without the items that are least like "
        "that text",
    )  # fmt: skip
    writer: str = Field("smollm2", description="language model that writes: a decoder with its lm_head")
    prompt: str = Field(
        SUMMARY, max_length=4096, description=f"what the writer continues to the end of the line; {TITLES} stands for "
        "the newest titles of a history. By default two examples of a summary come first",
    )  # fmt: skip
    source: str = Field("minilm", description="frozen language model that reads titles and written texts")
    users: int = Field(500, ge=2, le=10_000_000, description="most users whose histories are written about")
    each: int = Field(1, ge=1, le=1000, description="beginnings of such a user's history, evenly spaced")
    newest: int = Field(8, ge=1, le=1000, description="newest items that the writer is shown, and that a view drops of")
    tokens: int = Field(16, ge=2, le=256, description="most tokens of a text")
    dropped: float = Field(0.3, gt=0, lt=1, description="share of these items that a view drops")
    temperature: float = Field(0.2, gt=0, description="of the cosines")
    random: bool = Field(False, description="control: texts of other histories, and items dropped at random")

    @field_validator("prompt")
    @classmethod
    def _has_titles(cls, value: str) -> str:
        if value.count(TITLES) != 1:
            raise ValueError(f"a prompt holds {TITLES} once (given {value.count(TITLES)} times)")
        return value

    @property
    def used(self) -> bool:
        """Whether texts are needed."""
        return self.texts > 0 or self.drops > 0


def cosine_nce(first_VH: Tensor, second_VH: Tensor, targets_V: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE of cosines from both sides; zero for a single pair.

    Histories with the same next item are no negatives of each other (DuoRec, Qiu et al. 2022).

    Args:
        first_VH, second_VH: pairs.
        targets_V: the next item of each.
        temperature: of the cosines.
    """
    cosines_VV = F.normalize(first_VH, dim=-1) @ F.normalize(second_VH, dim=-1).T / temperature
    same_VV = targets_V[:, None] == targets_V
    same_VV.fill_diagonal_(False)
    logits_VV = cosines_VV.masked_fill(same_VV, -torch.inf)
    own_V = torch.arange(len(targets_V), device=targets_V.device)
    return (F.cross_entropy(logits_VV, own_V) + F.cross_entropy(logits_VV.T, own_V)) / 2
