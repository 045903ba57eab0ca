"""Settings of the stages that adapt a language model to encode text, before the training as a recommender."""

from __future__ import annotations

from pydantic import Field

from modeling.spec import ModelSpec, Section


class AdaptationSpec(Section):
    """Stages of LLM2Vec (BehnamGhader et al. 2024) over titles and training histories; 0 steps leave a stage out.

    ``masked_steps``: masked next-token prediction. ``simcse_steps``: unsupervised SimCSE (Gao et al. 2021), the same
    text twice with other dropout. Each trains a LoRA, which is merged before the next stage begins.

    ``passage_steps``: the pretext tasks of Llama2Vec (Li et al. 2024), EBAE and EBAR: states behind a text name its own
    words and those of the next title. It is a way of its own, for histories and items that end in a closing text.
    """

    masked_steps: int = Field(0, ge=0, description="steps of masked next-token prediction")
    simcse_steps: int = Field(0, ge=0, description="steps of unsupervised contrastive learning (SimCSE)")
    passage_steps: int = Field(0, ge=0, description="steps of EBAE and EBAR (words of a text, of the next title)")
    texts: int = Field(32, ge=2, description="texts per step")
    rate: float = Field(5e-4, gt=0, description="learning rate of the stages")
    masked: float = Field(0.2, gt=0, lt=1, description="share of tokens that are predicted")
    dropout: float = Field(0.3, gt=0, lt=1, description="dropout on attention weights that makes two views of a text")
    temperature: float = Field(0.05, gt=0, description="divisor of the cosines between views")

    @property
    def used(self) -> bool:
        """Whether there is any stage."""
        return bool(self.masked_steps or self.simcse_steps or self.passage_steps)


def check_summaries(model: ModelSpec, spec: AdaptationSpec) -> None:
    """Raises ``ValueError`` where summaries would be trained that nothing reads, or that the model cannot make."""
    if not (spec.passage_steps or model.pooling.kind == "end_n"):
        return
    if spec.masked_steps or spec.simcse_steps:
        raise ValueError(
            "pooling.kind='end_n' and method.adaptation.passage_steps are a way of adaptation of their own: "
            "method.adaptation.masked_steps and simcse_steps are 0 with it"
        )
    fits = model.pooling.kind in ("eos", "end_n") and model.items.tower == "encoder" and not model.backbone.own
    if not fits or model.backbone.attention != "causal":
        raise ValueError(
            "method.adaptation.passage_steps trains the states behind a text: pooling.kind 'eos' or 'end_n', "
            "items.tower='encoder' and a language model with backbone.attention='causal' are needed (given "
            f"{model.pooling.kind!r}, {model.items.tower!r} and {model.backbone.attention!r})"
        )
