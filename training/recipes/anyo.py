"""anyo: a language model without ``lm_head`` reads the history, its last state is projected into the item space."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ProjectorSpec
from training.recipes.base import ObjectiveSpec, OptimizerSpec, Recipe


def recipe() -> Recipe:
    """Compressed histories by default: titles are read once, offline, and an item is one position (text + id).

    ``--set history.form=titles`` lets the backbone read the title tokens themselves, each title followed by the
    item's id vector.
    """
    return Recipe(
        name="anyo",
        summary="language model as encoder; last state projected into the item space (ids + title vectors)",
        source="the seed documents; injection after E4SRec (Li et al. 2024), loss after B10",
        history=HistorySpec(form="compressed", limit=50, id_dropout=0.05, dropout=0.5),
        backbone=BackboneSpec(source="minilm", attention="causal", dropout=0.1),
        adapter=AdapterSpec(kind="lora", rank=16, alpha=32),
        projector=ProjectorSpec(kind="linear", residual=True, dropout=0.5),
        items=ItemsSpec(tower="both", dim=128, normalize=True),
        objective=ObjectiveSpec(kind="full"),
        optimizer=OptimizerSpec(rate=1e-3, backbone_rate=1e-3, schedule="cosine", warmup=0.05, epochs=20, patience=5),
    )
