"""E4SRec (Li et al. 2024): the item vectors of a SASRec as inputs of a language model, and a matrix over all items."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ProjectorSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import OptimizerSpec, Recipe, RecipeError

FEED_FORWARD = {"minilm": "intermediate.dense,output.dense"}
"""Linear maps of the feed-forward blocks, by backbone; in BERT ``output.dense`` also matches attention's output map."""


def recipe(backbone: str = "tiny") -> Recipe:
    """An instruction, then one position per item: its frozen vector of the ``sasrec`` given with ``--id-model``, mapped
    to the width of the backbone. The state at the newest item times an untied N × H matrix gives all scores.

    Differences to the paper: the state is read at every item instead of after a response marker, so that one pass has
    as many targets as items (there is no suffix, and no padding inside a prompt); the input map has no bias; padding is
    not a class; learning rates are those of small backbones.
    Three other forms are settings, see the documentation of recipes: tied to the id table, titles only, and items as
    new words of the vocabulary.
    """
    if backbone == "none":
        raise RecipeError("recipe 'e4srec' needs a language model: backbone 'none' is not allowed; use 'sasrec'")
    return Recipe(
        name="e4srec",
        summary="language model over the frozen item vectors of a sasrec; untied matrix over all items",
        source="Li et al. 2024, E4SRec: An Elegant Effective Efficient Extensible Solution of LLMs for Recommendation",
        history=HistorySpec(
            form="ids", limit=50, dropout=0.0, instruction="Given the items a user chose in order, predict the next:"
        ),
        backbone=BackboneSpec(source=backbone, layers=3 if backbone == "minilm" else None, dropout=0.0),
        adapter=AdapterSpec(
            kind="lora", rank=16, alpha=16, dropout=0.05,
            targets=FEED_FORWARD.get(backbone, "gate_proj,up_proj,down_proj"),
        ),
        projector=ProjectorSpec(kind="identity"),
        items=ItemsSpec(tower="id", dim=128, normalize=False, untied=True, frozen=True),
        method=DenseSettings(objective=ObjectiveSpec(kind="full")),
        optimizer=OptimizerSpec(rate=1e-3, backbone_rate=1e-3, schedule="cosine", warmup=0.05, epochs=20, patience=5),
        requires="sasrec",
    )  # fmt: skip
