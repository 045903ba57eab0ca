"""item_knn: item-to-item collaborative filtering; items that share users with the newest items of the history."""

from __future__ import annotations

from modeling.spec import HistorySpec, ItemsSpec
from training.methods.counts import CountsSettings, no_backbone
from training.recipe import Recipe
from training.search_space.ranges import Between, Space

SPACE: Space = {
    "method.last": Between(1, 50, log=True),
    "method.decay": Between(0.5, 1.0),
}


def recipe(backbone: str = "none") -> Recipe:
    """Cosine between items over users, summed over the last ten items; users with many items have less weight.

    ``method.neighbours`` keeps only the nearest neighbours of each item, which makes the artifact small."""
    no_backbone("item_knn", backbone)
    return Recipe(
        name="item_knn",
        summary="baseline: nearest neighbours of the last ten items, no network",
        source="item-based nearest neighbours; Sarwar et al. 2001, Deshpande and Karypis 2004",
        history=HistorySpec(form="ids"),
        items=ItemsSpec(tower="id"),
        method=CountsSettings(rule="item-knn"),
    )
