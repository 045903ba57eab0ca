"""hybrid_knn: items like the newest items of the history, by their titles and by what stands near them in histories."""

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
    """Cosine of TF-IDF vectors of titles plus cosine of co-occurrence vectors, summed over the last ten items.

    Titles speak for items that few have taken, histories for the others. For each item the 200 most similar ones are
    kept, with what they are more similar than the next one; ``method.neighbours=null`` keeps all, which takes N²
    entries. Titles are read in training: one that changes later changes no ranking, and a new item is refused."""
    no_backbone("hybrid_knn", backbone)
    return Recipe(
        name="hybrid_knn",
        summary="baseline: items like the last ten items by titles and by co-occurrence, no network",
        source="TF-IDF; positive pointwise mutual information in its singular vectors, Levy et al. 2015",
        history=HistorySpec(form="ids"),
        items=ItemsSpec(tower="id"),
        method=CountsSettings(rule="hybrid-knn", neighbours=200),
    )
