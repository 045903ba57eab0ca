"""SASRec (Kang and McAuley 2018) with softmax over all items: the id-based baseline of all other recipes."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ProjectorSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import OptimizerSpec, Recipe, RecipeError
from training.search_space.ranges import Between, OneOf, Space

SPACE: Space = {
    "optimizer.rate": Between(3e-4, 3e-3, log=True),
    "optimizer.weight_decay": Between(1e-3, 0.1, log=True),
    "history.dropout": Between(0.1, 0.6),
    "backbone.dropout": Between(0.1, 0.6),
    "backbone.depth": Between(1, 3),
    "projector.residual": OneOf((False, True)),
}


def recipe(backbone: str = "none") -> Recipe:
    """A two-layer causal transformer over item ids, with one table for input and output.

    Differences to the paper: softmax over all items at every position instead of BCE with one negative (which costs
    half the accuracy, Klenitskiy and Vasilev 2023), pre-normalised blocks, cosine scores with a learned scale.
    """
    if backbone != "none":
        raise RecipeError(f"recipe 'sasrec' has no language model: backbone {backbone!r} is not allowed, only 'none'")
    return Recipe(
        name="sasrec",
        summary="id model: self-attention over item ids, softmax over all items",
        source="Kang and McAuley 2018; loss after Klenitskiy and Vasilev 2023",
        history=HistorySpec(form="ids", limit=50, dropout=0.5),
        backbone=BackboneSpec(source="none", width=128, depth=2, heads=2, dropout=0.5),
        adapter=AdapterSpec(kind="none"),
        projector=ProjectorSpec(kind="identity"),
        items=ItemsSpec(tower="id", dim=128, normalize=True),
        method=DenseSettings(objective=ObjectiveSpec(kind="full")),
        optimizer=OptimizerSpec(rate=1e-3, weight_decay=0.01, epochs=100, patience=8),
    )
