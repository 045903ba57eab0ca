"""item_softmax: a language model with an output layer (matrix and bias) over all items instead of its vocabulary."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ProjectorSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import OptimizerSpec, Recipe, RecipeError
from training.search_space.ranges import Between, OneOf, Space

SPACE: Space = {
    "optimizer.rate": Between(3e-4, 5e-3, log=True),
    "optimizer.backbone_rate": Between(1e-4, 5e-3, log=True),
    "history.dropout": Between(0.1, 0.6),
    "adapter.rank": OneOf((4, 8, 16, 32)),
}


def recipe(backbone: str = "minilm") -> Recipe:
    """The state at the newest item times an N × H matrix, plus a bias: softmax over the catalog.

    The matrix is not tied to the item inputs. The bias is stored as one more dimension, so that an index over the rows
    of the matrix returns items in the order of the softmax. ``--set method.objective.kind=sampled`` draws negatives
    (with logQ correction); the full softmax is computed in chunks if its logits would take more than 128 MiB.
    """
    if backbone == "none":
        raise RecipeError("recipe 'item_softmax' needs a language model: backbone 'none' is not allowed; use 'sasrec'")
    tiny = backbone == "tiny"
    rate = 2e-3 if tiny else 1e-3
    return Recipe(
        name="item_softmax",
        summary="language model with an item head: untied matrix and bias over all items, full softmax",
        source="softmax over items with an output layer, Covington et al. 2016; logQ after Yi et al. 2019",
        history=HistorySpec(form="compressed", limit=50, id_dropout=0.05, dropout=0.2 if tiny else 0.5),
        backbone=BackboneSpec(
            source=backbone, layers=3 if backbone == "minilm" else None, dropout=0.0 if tiny else 0.1
        ),
        adapter=AdapterSpec(kind="lora", rank=16, alpha=32),
        projector=ProjectorSpec(kind="identity"),
        items=ItemsSpec(tower="id", dim=128, normalize=False, untied=True, bias=True),
        method=DenseSettings(objective=ObjectiveSpec(kind="full")),
        optimizer=OptimizerSpec(
            rate=rate, backbone_rate=rate, schedule="cosine", warmup=0.05, epochs=12 if tiny else 20, patience=5
        ),
    )
