"""Contriever (Izacard et al. 2022) for recommendation: one text encoder reads histories and items alike."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, PoolingSpec, ProjectorSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import OptimizerSpec, Recipe, RecipeError


def recipe(backbone: str = "minilm") -> Recipe:
    """Titles only: a history is the titles of its items, and an item is encoded like a history of its own title. Both
    use the same bidirectional encoder, mean pooling and linear map; the loss compares each history with the next items
    of its batch.

    Differences to the paper: pairs are histories and next items instead of two crops of a text; the temperature is
    learned; negatives have a popularity correction (logQ); the encoder is tuned with LoRA instead of fully.
    ``method.objective.queue`` adds negatives of earlier batches, encoded by a momentum copy of the encoder as in the
    paper's pre-training; unlike there, the items of the batch itself have gradients.
    An item that is added later needs no training: its title is encoded like the others.
    """
    if backbone == "none":
        raise RecipeError("recipe 'contriever' reads titles: backbone 'none' is not allowed, a language model is")
    return Recipe(
        name="contriever",
        summary="one text encoder for histories and items: mean pooling, bidirectional, in-batch contrastive",
        source="Izacard et al. 2022, Unsupervised Dense Information Retrieval with Contrastive Learning",
        history=HistorySpec(form="text", limit=10, title_tokens=16, dropout=0.0),
        backbone=BackboneSpec(
            source=backbone, attention="bidirectional", layers=3 if backbone == "minilm" else None, dropout=0.1
        ),
        pooling=PoolingSpec(kind="mean"),
        adapter=AdapterSpec(kind="lora", rank=16, alpha=32),
        projector=ProjectorSpec(kind="linear"),
        items=ItemsSpec(tower="encoder", dim=128, normalize=True),
        method=DenseSettings(objective=ObjectiveSpec(kind="in_batch")),
        optimizer=OptimizerSpec(
            rate=1e-3, backbone_rate=1e-3, schedule="cosine", warmup=0.05, epochs=20, patience=5, positions=256,
            user_windows=8,
        ),
    )  # fmt: skip
