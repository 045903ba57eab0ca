"""popularity: the items that most people chose, the same list for everyone."""

from __future__ import annotations

from modeling.spec import HistorySpec, ItemsSpec
from training.methods.counts import CountsSettings, no_backbone
from training.recipe import Recipe


def recipe(backbone: str = "none") -> Recipe:
    """One count an item; seen items are left out when it is asked."""
    no_backbone("popularity", backbone)
    return Recipe(
        name="popularity",
        summary="baseline: most chosen items, no network",
        source="unpersonalised baseline; Cremonesi et al. 2010",
        history=HistorySpec(form="ids"),
        items=ItemsSpec(tower="id"),
        method=CountsSettings(rule="popularity"),
    )
