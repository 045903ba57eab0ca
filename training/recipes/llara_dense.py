"""Llama2Vec (Li et al. 2024; its code is called LLARA) for recommendation: a decoder adapted to summarise texts."""

from __future__ import annotations

from training.adaptation.spec import AdaptationSpec
from training.recipe import Recipe, RecipeError
from training.recipes.contriever import recipe as two_towers


def recipe(backbone: str = "tiny") -> Recipe:
    """A causal decoder with sixteen new tokens: eight after an item's title summarise it, eight after a history predict
    the next item. Before the training as a recommender, the states of the former predict the words of their text
    (EBAE), those of the latter the words of the next title (EBAR). The model is then trained as two text towers with
    one shared encoder; a vector is the mean of the last eight states, and no head is served.

    ``pooling.kind=eos`` pools one end token after the closing texts instead. Controls:
    ``method.adaptation.passage_steps=0`` skips the stage that trains the new tokens, and equal ``closing`` texts for
    histories and items leave only the tokens to distinguish them.

    Differences to the paper: texts are titles and training histories instead of an encyclopedia, with learning rates of
    small models; the stage trains a LoRA and the new tokens instead of all weights; the predicted words exclude
    separators instead of stop words; negatives are the other items of the batch with a popularity correction, without
    hard negatives; the temperature is learned.
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"recipe 'llara_dense' adapts a decoder with its lm_head: backbone {backbone!r} has none")
    return two_towers(backbone).derived(
        "llara_dense",
        summary="a decoder that learns to name a text's words and the next title's, then two text towers",
        source="Li et al. 2024, Llama2Vec: Unsupervised Adaptation of Large Language Models for Dense Retrieval",
        backbone={"attention": "causal"},
        history={"closing": " The next title, in eight words:"},
        items={"closing": " This title, in eight words:"},
        pooling={"kind": "end_n", "count": 8},
        method={"adaptation": AdaptationSpec(passage_steps=300)},
    )
