"""transitions: what followed the newest item most often."""

from __future__ import annotations

from training.methods.transitions import TransitionSettings

from modeling.spec import HistorySpec, ItemsSpec
from training.recipe import Recipe


def recipe(backbone: str = "none") -> Recipe:
    """One pass over the training part."""
    return Recipe(
        name="transitions",
        summary="first-order Markov chain over items",
        source="Rendle et al. 2010, the unpersonalised chain",
        history=HistorySpec(form="ids", limit=1),
        items=ItemsSpec(tower="id"),
        method=TransitionSettings(),
    )
