"""tiger: a transformer writes the semantic ID of the next item, code by code, along the tree of all IDs."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.recipes.base import CodesSpec, ObjectiveSpec, OptimizerSpec, Recipe, RecipeError, WritingSpec


def recipe(backbone: str = "none") -> Recipe:
    """Three codes of 256 an item from the vector of its title, and a fourth that tells equal ones apart.

    Against the paper: decoder only, with the loss at every code of the sequence instead of an encoder and a decoder
    over one target a sequence; titles read by minilm instead of titles, prices and brands by Sentence-T5; no user
    token. ``codes.kind=residual-kmeans`` takes k-means on the title vectors instead of the RQ-VAE.
    """
    if backbone != "none":
        raise RecipeError(f"recipe 'tiger' trains its own network: backbone {backbone!r} is not allowed, only 'none'")
    return Recipe(
        name="tiger",
        summary="semantic IDs: a decoder writes the codes of the next item along the tree of all IDs",
        source="TIGER (Rajput et al. 2023), decoder only",
        history=HistorySpec(form="codes", limit=20, dropout=0.2),
        backbone=BackboneSpec(source="none", width=128, depth=4, heads=4, dropout=0.2),
        adapter=AdapterSpec(kind="none"),
        items=ItemsSpec(tower="id", text_source="minilm"),
        objective=ObjectiveSpec(kind="full"),
        optimizer=OptimizerSpec(rate=1e-3, backbone_rate=1e-3, warmup=0.02, epochs=60, patience=6, positions=1024),
        scoring="trie",
        writing=WritingSpec(beams=20),
        codes=CodesSpec(),
    )
