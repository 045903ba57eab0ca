"""tallrec: a language model predicts whether a user will like an item, from a few examples."""

from __future__ import annotations

from training.methods.base_prompted import prompted_recipe
from training.methods.tallrec import TallrecSettings
from training.recipe import Recipe

INSTRUCTION = "Given what a user liked and disliked, say whether the user will like the target. Answer Yes or No."


def recipe(backbone: str = "smollm2") -> Recipe:
    """Liked and disliked items, one candidate, yes or no; loss on the answer only; LoRA.

    ``method.sequences`` is the number of shots; ``optimizer.epochs=0`` is zero-shot. Differences to the paper: one
    stage of training, since an instruction-tuned backbone has had the general one; LoRA of rank 8 on all linear maps of
    all layers; the score is the difference of the answers' logits (`modeling/methods/tallrec.py`); no headings; the
    loss is on the answer only (the published scripts train on all tokens); examples are drawn from all users.

    An item is liked if its rating is above 3, as published. For data without ratings, ``method.answers=choices`` trains
    on the next item against a random one. A list has the candidates of a dense artifact (``--set requires=sasrec
    --id-model DIR``), or popular items, in the model's order.
    """
    return prompted_recipe(
        "tallrec", backbone, TallrecSettings(sequences=64), instruction=INSTRUCTION, alpha=16, epochs=20, patience=5,
        summary="language model says whether a user will like an item; yes or no, from a few examples",
        source="TALLRec (Bao et al. 2023)",
    )  # fmt: skip
