"""What data a recipe cannot learn from, said before anything is trained."""

from __future__ import annotations

import numpy as np

from modeling.encoder.build import TextVectors
from training.data.report import DataError
from training.data.splits import Split
from training.effects import VECTOR_CODES
from training.recipes.base import Recipe, RecipeError


def check_learnable(recipe: Recipe, split: Split) -> None:
    """Look at items, histories and titles.

    Raises:
        DataError: nobody has two training items; users have had every item; or all titles are one.
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
    reads_titles = recipe.scoring != "dense" and recipe.history.form == "titles"
    reads_titles |= recipe.scoring == "dense" and (recipe.needs_text_vectors or recipe.history.reads_tokens)
    reads_titles |= recipe.history.form == "codes" and recipe.codes.kind in VECTOR_CODES[:2]
    if reads_titles and len(set(data.titles)) < 2:
        raise DataError(
            f"{data.name}: all {data.n_items} titles are {data.titles[0]!r:.60}, and recipe {recipe.name!r} reads "
            "titles; use 'sasrec', which reads ids only"
        )
    _check_sizes(recipe, data.n_items, any(data.categories))


def _check_sizes(recipe: Recipe, items: int, categories: bool) -> None:
    kind = recipe.codes.kind
    made = kind in ("rq-vae", "residual-kmeans") or (kind == "semantic" and not categories)
    if recipe.history.form == "codes" and made and items < recipe.codes.size:
        raise RecipeError(
            f"codes.size={recipe.codes.size}: {items} items cannot have that many codes a level; set it to {items} or "
            "less"
        )
    if recipe.scoring == "choose" and items < recipe.writing.candidates:
        raise RecipeError(
            f"writing.candidates={recipe.writing.candidates}: there are {items} items; set it to {items} or less"
        )


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
