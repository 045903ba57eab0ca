"""DLLM2Rec (Cui et al. 2024): an id model distilled from the lists and the item vectors of a language model."""

from __future__ import annotations

from training.objectives.distillation import DistillationSpec
from training.recipe import Recipe
from training.recipes.sasrec import recipe as student


def recipe(backbone: str = "none") -> Recipe:
    """The `sasrec` recipe with two additions in training: a loss on the teacher's best items for every training target,
    weighted by rank, by the teacher's confidence and by agreement with the student; and the teacher's item vectors,
    mapped and added to the id table. The artifact is that of a ``sasrec``, with the same serving cost.

    Differences to the paper: the student's own loss is the softmax over all items (the published one is
    ``method.objective.kind=gbce`` with one negative and no calibration); no DROS regulariser; the map has no bias.
    """
    return student(backbone).derived(
        "dllm2rec",
        summary="sasrec that learns from another artifact's lists and item vectors",
        source="Cui et al. 2024, Distillation Matters: Empowering Sequential Recommenders to Match LLMs",
        method={"distillation": DistillationSpec(ranking=0.7, embedding=0.3)},
    )
