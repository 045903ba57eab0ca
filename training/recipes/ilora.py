"""iLoRA (Kong et al. 2024): a language model whose low-rank update is mixed anew for every user."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ProjectorSpec
from training.methods.dense import DenseSettings
from training.objectives.base import ObjectiveSpec
from training.recipe import OptimizerSpec, Recipe, RecipeError


def recipe(backbone: str = "minilm") -> Recipe:
    """A language model with LoRA experts reads the titles of the newest ten items and their vectors from the ``sasrec``
    given with ``--id-model``. A router maps the id model's state at the newest item to gates of the experts for each
    user; the id model is stored in the artifact. ``adapter.gates=uniform`` is the control: plain LoRA, with the same
    histories and number of passes.

    The gates depend on the whole history, so a state inside it would depend on later items: every target has a pass of
    its own, as published. Histories without ids have the gates of an empty state.

    Differences to the paper: items are scored by their vectors, with a softmax over the catalog, instead of generated;
    the router normalises within a row (GroupNorm), so that gates do not depend on the batch; no curriculum over
    prompts; one learning rate for router and experts.
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
