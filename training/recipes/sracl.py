"""SRA-CL (Cui et al. 2025): an id model with contrastive losses; a frozen language model finds the positives."""

from __future__ import annotations

from training.objectives.contrastive import SemanticSpec
from training.recipe import Recipe
from training.recipes.sasrec import recipe as plain


def recipe(backbone: str = "none") -> Recipe:
    """The `sasrec` recipe with two contrastive losses. Between users: the positive of a history's state is a learned
    mixture of the states of users whose items have similar texts. Within a user: the two views of a history, in which
    some items are replaced by items with similar texts, are positives of each other. The language model is used in
    training only: the artifact is that of a ``sasrec``, with the same serving cost.

    Differences to the paper: a user is described by the mean text vector of the newest items and an item by its title,
    instead of by texts that a large language model generates; neighbours are other users with their whole training
    history, instead of prefixes of any history; one position per window and step is drawn for both losses, instead of
    every prefix being an example; scores are cosines with a learned scale. Validation and test interactions are not
    read, which the authors' program does.
    """
    return plain(backbone).derived(
        "sracl",
        summary="sasrec with contrastive losses over users and items whose texts are similar",
        source="Cui et al. 2025, Semantic Retrieval Augmented Contrastive Learning (SRA-CL)",
        method={"semantic": SemanticSpec(users=0.1, items=0.1)},
    )
