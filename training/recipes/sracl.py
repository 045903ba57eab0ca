"""SRA-CL (Cui et al. 2025): an id model with contrastive losses whose positives a frozen language model finds."""

from __future__ import annotations

from training.methods.dense import DenseSettings
from training.objectives.contrastive import SemanticSpec
from training.recipe import Recipe
from training.recipes.sasrec import recipe as plain


def recipe(backbone: str = "none") -> Recipe:
    """The `sasrec` recipe with two more losses. Between users: a history's state is close to a learned mix of the
    states of users whose items have similar texts. Within a user: two views of a history, in which items of similar
    texts take the place of some, have close states. The language model is used in training alone: the artifact is that
    of a ``sasrec``, and costs as much to serve.

    Against the paper: a user is described by the mean vector of the newest items' texts and an item by its title,
    instead of by texts that a large language model writes; neighbours of a history are other users with their whole
    training history, instead of any beginning of anybody's; in each window of a history one position is drawn for both
    losses in a step, instead of every beginning being an example; scores are cosines with a learned scale.
    Nothing of validation or test is read, which the authors' program does not hold to.
    """
    base = plain(backbone)
    return base.model_copy(
        update={
            "name": "sracl",
            "summary": "sasrec with contrastive losses over users and items whose texts are similar",
            "source": "Cui et al. 2025, Semantic Retrieval Augmented Contrastive Learning (SRA-CL)",
            "method": DenseSettings(
                objective=base.method.objective,  # type: ignore[attr-defined]
                semantic=SemanticSpec(users=0.1, items=0.1),
            ),
        }
    )
