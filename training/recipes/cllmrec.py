"""CLLMRec (Lu et al. 2025): an id model with contrastive losses over texts that a language model generates."""

from __future__ import annotations

from training.objectives.views import ViewsSpec
from training.recipe import Recipe
from training.recipes.sasrec import recipe as plain


def recipe(backbone: str = "none") -> Recipe:
    """The `sasrec` recipe with two contrastive losses. Before training, a local language model generates a short text,
    by default a summary, for prefixes of training histories. In training, the positives of such a history's state
    are the mapped vector of its text, and the state of the same history without the items least similar to the text.
    The language model runs before training only: the artifact is that of a ``sasrec``, with the same serving cost.

    Differences to the paper: it lets a language model select the items of two crops of a history; here a generated text
    determines the dropped items, and is a view itself. Views are encoded by the trained model; the authors' program
    creates a new encoder in every step, so that this loss has no gradient to the recommender. The recommender is a
    ``sasrec`` instead of an LRURec; histories with the same next item are not negatives of each other; weights are 0.1
    instead of 0.5 and the temperature is 0.2 instead of 1. Texts are generated for one prefix of the histories of at
    most 500 users.
    """
    return plain(backbone).derived(
        "cllmrec",
        summary="sasrec with contrastive losses over views of histories that a language model makes",
        source="Lu et al. 2025, Contrastive Learning with LLMs-based View Augmentation (CLLMRec)",
        method={"views": ViewsSpec(texts=0.1, drops=0.1)},
    )
