"""LLM2Vec (BehnamGhader et al. 2024) for recommendation: a decoder adapted to encode texts of histories and items."""

from __future__ import annotations

from training.adaptation.spec import AdaptationSpec
from training.recipe import Recipe, RecipeError
from training.recipes.contriever import recipe as two_towers


def recipe(backbone: str = "tiny") -> Recipe:
    """A decoder with bidirectional attention, adapted by masked next-token prediction and by SimCSE over titles and
    histories, then trained as the two towers of ``contriever``: a history is the titles of its items, an item its own
    title, with one shared encoder. Each stage trains a LoRA that is merged before the next; no head is served.

    ``pooling.kind`` is ``mean``, as published; use ``weighted_mean`` for a control with causal attention
    (``backbone.attention=causal``). The folder ``backbone`` of an artifact is the adapted model; another recipe can
    encode titles with it through ``items.text_source``.

    Differences to the paper: texts are titles and training histories instead of an encyclopedia; fewer steps, with
    learning rates of small models; the last stage is supervised by next items instead of labelled pairs.
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"recipe 'llm2vec' adapts a decoder with its lm_head: backbone {backbone!r} has none")
    return two_towers(backbone).derived(
        "llm2vec",
        summary="a decoder made into a bidirectional text encoder, then histories and items in one tower",
        source="BehnamGhader et al. 2024, LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders",
        method={"adaptation": AdaptationSpec(masked_steps=300, simcse_steps=100)},
    )
