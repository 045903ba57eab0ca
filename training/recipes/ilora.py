"""iLoRA (Kong et al. 2024): a language model whose low-rank update is mixed anew for every user."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ProjectorSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import OptimizerSpec, Recipe, RecipeError


def recipe(backbone: str = "minilm") -> Recipe:
    """The titles of the newest ten items and their vectors, those of the ``sasrec`` given with ``--id-model``, are read
    by a language model with experts. A router reads that model's state at the newest item, and gives every user gates
    of their own; the id model travels in the artifact. ``adapter.gates=uniform`` is the control: plain LoRA, for the
    same histories and as many passes.

    The gates come from the whole history, so that a state in the middle of it would know what comes after: every target
    has a pass of its own, as published. Histories without ids have the gates of an empty state.

    Against the paper: items are found by their vectors, with a softmax over the catalog, instead of written; the router
    normalises within a row (GroupNorm), so that gates do not depend on the batch; no curriculum over prompts; one rate
    for router and experts.
    """
    if backbone == "none":
        raise RecipeError("recipe 'ilora' adapts a language model: backbone 'none' is not allowed; use 'sasrec'")
    return Recipe(
        name="ilora",
        summary="language model over titles and a sasrec's item vectors; low-rank experts gated for each user",
        source="Kong et al. 2024, Customizing Language Models with Instance-wise LoRA for Sequential Recommendation",
        history=HistorySpec(form="titles", limit=10, title_tokens=16, dropout=0.0),
        backbone=BackboneSpec(source=backbone, layers=3 if backbone == "minilm" else None, dropout=0.0),
        adapter=AdapterSpec(kind="ilora", rank=8, alpha=32, dropout=0.1, experts=4),
        projector=ProjectorSpec(kind="linear"),
        items=ItemsSpec(tower="id", dim=128, normalize=True, frozen=True),
        method=DenseSettings(objective=ObjectiveSpec(kind="full")),
        optimizer=OptimizerSpec(
            rate=1e-3, backbone_rate=8e-4, schedule="cosine", warmup=0.05, epochs=20, patience=5, positions=256,
            user_windows=8,
        ),
        requires="sasrec",
    )  # fmt: skip
