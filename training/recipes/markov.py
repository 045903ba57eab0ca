"""markov: first-order Markov chain; the items that most often followed the newest item of the history."""

from __future__ import annotations

from modeling.spec import HistorySpec, ItemsSpec
from training.methods.counts import CountsSettings, no_backbone
from training.recipe import Recipe


def recipe(backbone: str = "none") -> Recipe:
    """Transition counts of the training part; items without transitions are ranked by popularity."""
    no_backbone("markov", backbone)
    return Recipe(
        name="markov",
        summary="baseline: what followed the newest item, no network",
        source="first-order Markov chain, unpersonalised; Rendle et al. 2010",
        history=HistorySpec(form="ids"),
        items=ItemsSpec(tower="id"),
        method=CountsSettings(rule="markov"),
    )
