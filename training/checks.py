"""Refusal of data that a recipe cannot learn from, before anything is trained."""

from __future__ import annotations

import numpy as np

from modeling.encoder.build import TextVectors
from training.data.report import DataError
from training.data.splits import Split
from training.recipe import Recipe


def check_learnable(recipe: Recipe, split: Split) -> None:
    """Look at items, histories and titles.

    Raises:
        DataError: no user has two training items; users have had every item; or all titles are one.
        RecipeError: fewer items than codes of a level, or than candidates.
    """
    data = split.dataset
    if not (split.train_lengths_U > 1).any():
        raise DataError("nothing to train on: no user has two items or more in the training part of the split")
    for part in ("validation", "test"):
        targets = split.validation if part == "validation" else split.test
        if all(len(np.unique(history)) >= data.n_items for history in targets.histories()):
            raise DataError(
                f"{data.name}: every user who is asked on {part} has had all {data.n_items} items, so none is left to "
                "recommend; the catalog needs more items"
            )
    if recipe.method.reads_titles(recipe) and len(set(data.titles)) < 2:
        raise DataError(
            f"{data.name}: all {data.n_items} titles are {data.titles[0]!r:.60}, and recipe {recipe.name!r} reads "
            "titles; use 'sasrec', which reads ids only"
        )
    recipe.method.check_catalog(recipe, data.n_items, categories=any(data.categories))


def check_text(text: TextVectors | None, recipe: Recipe) -> None:
    """Title vectors that are all one, or not finite, say nothing about items.

    Raises:
        DataError: they are.
    """
    if text is None:
        return
    vectors_NC = text.vectors_NC
    if not np.isfinite(vectors_NC).all() or float(np.ptp(vectors_NC, axis=0).max()) < 1e-6:
        raise DataError(
            f"the backbone {recipe.text_backbone!r} reads all {len(vectors_NC)} titles as one vector, so they tell no "
            "items apart; take another items.text_source, or 'sasrec', which reads ids only"
        )
