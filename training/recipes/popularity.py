"""popularity: the items with the most interactions, the same list for all users."""

from __future__ import annotations

from modeling.spec import HistorySpec, ItemsSpec
from training.methods.counts import CountsSettings, no_backbone
from training.recipe import Recipe


def recipe(backbone: str = "none") -> Recipe:
    """One count per item; seen items are left out of the list."""
    no_backbone("popularity", backbone)
    return Recipe(
        name="popularity",
        summary="baseline: most chosen items, no network",
        source="unpersonalised baseline; Cremonesi et al. 2010",
        history=HistorySpec(form="ids"),
        items=ItemsSpec(tower="id"),
        method=CountsSettings(rule="popularity"),
    )
