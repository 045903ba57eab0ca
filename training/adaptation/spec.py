"""How a language model is made into a text encoder before it is trained to recommend."""

from __future__ import annotations

from pydantic import Field

from modeling.spec import Section


class AdaptationSpec(Section):
    """Stages of LLM2Vec (BehnamGhader et al. 2024) over titles and training histories; 0 steps leave a stage out.

    ``masked_steps``: masked next-token prediction. ``simcse_steps``: unsupervised SimCSE (Gao et al. 2021), the same
    text twice with other dropout. Each trains a LoRA, which is merged before the next stage begins.
    """

    masked_steps: int = Field(0, ge=0, description="steps of masked next-token prediction")
    simcse_steps: int = Field(0, ge=0, description="steps of contrastive learning from texts alone")
    texts: int = Field(32, ge=2, description="texts of a step")
    rate: float = Field(5e-4, gt=0, description="learning rate of both stages")
    masked: float = Field(0.2, gt=0, lt=1, description="share of tokens that are predicted")
    dropout: float = Field(0.3, gt=0, lt=1, description="dropout on attention weights that makes two views of a text")
    temperature: float = Field(0.05, gt=0, description="of the cosines between views")

    @property
    def used(self) -> bool:
        """Whether there is any stage."""
        return bool(self.masked_steps or self.simcse_steps)
