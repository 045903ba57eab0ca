"""Llama2Vec (Li et al. 2024; its code is called LLARA) for recommendation: a decoder sums texts up in a few states."""

from __future__ import annotations

from modeling.spec import PoolingSpec
from training.adaptation.spec import AdaptationSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import Recipe, RecipeError
from training.recipes.contriever import recipe as two_towers


def recipe(backbone: str = "tiny") -> Recipe:
    """A causal decoder with sixteen new tokens: eight behind an item's title sum it up, eight behind a history say what
    comes next. Before it is trained to recommend, the states of the first name the words of their text (EBAE), those of
    the second the words of the next title (EBAR). It is then trained as two text towers, one encoder for both; the
    vector is the mean of the eight last states, and no head is served.

    ``pooling.kind=eos`` pools one end token behind the closing texts instead. Controls: ``method.adaptation.
    passage_steps=0`` leaves the new tokens untrained before the last stage, and equal ``closing`` texts for histories
    and items take away what tells them apart, beside the tokens.

    Against the paper: texts are titles and training histories instead of an encyclopedia, at rates of small models;
    the stage trains a LoRA and the new tokens instead of all weights; names leave out separators, not stop words;
    negatives are the other items of the batch, corrected for popularity, none is mined; the temperature is learned.
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"recipe 'llara_dense' adapts a decoder with its lm_head: backbone {backbone!r} has none")
    base = two_towers(backbone)
    return base.model_copy(
        update={
            "name": "llara_dense",
            "summary": "a decoder that learns to name a text's words and the next title's, then two text towers",
            "source": "Li et al. 2024, Llama2Vec: Unsupervised Adaptation of Large Language Models for Dense Retrieval",
            "backbone": base.backbone.model_copy(update={"attention": "causal"}),
            "history": base.history.model_copy(update={"closing": " The next title, in eight words:"}),
            "items": base.items.model_copy(update={"closing": " This title, in eight words:"}),
            "pooling": PoolingSpec(kind="end_n", count=8),
            "method": DenseSettings(
                objective=ObjectiveSpec(kind="in_batch"), adaptation=AdaptationSpec(passage_steps=300)
            ),
        }
    )
