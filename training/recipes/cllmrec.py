"""CLLMRec (Lu et al. 2025): an id model with contrastive losses over views that a language model makes."""

from __future__ import annotations

from training.methods.dense import DenseSettings
from training.objectives.views import ViewsSpec
from training.recipe import Recipe
from training.recipes.sasrec import recipe as plain


def recipe(backbone: str = "none") -> Recipe:
    """The `sasrec` recipe with two more losses. Before training a local language model writes a short text about the
    beginnings of training histories, a summary by default. Then the state of such a history is close to the mapped
    vector of its text, and to the state of the same history without the items that are least like the text. No language
    model is asked in training or in the artifact, which is that of a ``sasrec`` and costs as much to serve.

    Against the paper: it lets a language model choose what of a history is kept in two crops; here a text that is
    written decides what is dropped, and is a view itself. Views are encoded by the model that is trained: in the
    authors' program a fresh encoder is made in every step, and no gradient of this loss reaches the recommender. The
    recommender is a ``sasrec`` instead of an LRURec; histories with the same next item are no negatives of each other;
    weights are 0.1 instead of 0.5 and the temperature is 0.2 instead of 1. A text is written about one beginning of the
    histories of at most 500 users.
    """
    base = plain(backbone)
    return base.model_copy(
        update={
            "name": "cllmrec",
            "summary": "sasrec with contrastive losses over views of histories that a language model makes",
            "source": "Lu et al. 2025, Contrastive Learning with LLMs-based View Augmentation (CLLMRec)",
            "method": DenseSettings(
                objective=base.method.objective,  # type: ignore[attr-defined]
                views=ViewsSpec(texts=0.1, drops=0.1),
            ),
        }
    )
