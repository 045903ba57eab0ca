"""DLLM2Rec (Cui et al. 2024): an id model that learns from the lists and the item vectors of a language model."""

from __future__ import annotations

from training.methods.dense import DenseSettings
from training.objectives.distillation import DistillationSpec
from training.recipe import Recipe
from training.recipes.sasrec import recipe as student


def recipe(backbone: str = "none") -> Recipe:
    """The `sasrec` recipe with two more sources: the teacher's best items for every training target, weighed by their
    place, the teacher's confidence and the student's agreement; and the teacher's item vectors, mapped and added to the
    id table. Both are gone when it is trained: the artifact is that of a ``sasrec``, and costs as much to serve.

    Against the paper: the student's own loss is the softmax over all items (with ``method.objective.kind=gbce``, one
    negative and no calibration it is the published one); the regulariser of DROS is left out; mapped vectors have no
    bias.
    """
    base = student(backbone)
    return base.model_copy(
        update={
            "name": "dllm2rec",
            "summary": "sasrec that learns from another artifact's lists and item vectors",
            "source": "Cui et al. 2024, Distillation Matters: Empowering Sequential Recommenders to Match LLMs",
            "method": DenseSettings(
                objective=base.method.objective,  # type: ignore[attr-defined]
                distillation=DistillationSpec(ranking=0.7, embedding=0.3),
            ),
        }
    )
