"""llamarec: a language model orders lettered candidates of a dense artifact by one forward pass."""

from __future__ import annotations

from training.methods.base_prompted import prompted_recipe
from training.methods.llamarec import LlamarecSettings
from training.recipe import Recipe

INSTRUCTION = "A user has chosen these items, oldest first. Say the letter of the candidate that comes next."


def recipe(backbone: str = "smollm2") -> Recipe:
    """Numbered history, lettered candidates, next-token logits of the letters; loss on the letter; LoRA.

    Any dense artifact of the same data can retrieve: ``--set requires=anyo --id-model DIR`` for another recipe than
    ``sasrec``. ``method.negatives=retrieved`` trains on its lists instead of random candidates; candidates are in
    random order in both cases. Differences to the paper: the retriever is not LRURec; titles are truncated to 16
    tokens and histories to ten items; there is no loss on the end token after the letter; LoRA on all linear maps.

    Users whose target is not among the candidates keep the dense order, so metrics over the whole catalog correspond to
    the paper's overall ones; ``subset_ndcg@10`` is over the users whose target is among the candidates.
    """
    return prompted_recipe(
        "llamarec", backbone, LlamarecSettings(), instruction=INSTRUCTION, alpha=32, epochs=1, patience=3,
        summary="language model orders lettered candidates of a dense artifact in one forward pass",
        source="LlamaRec (Yue et al. 2023)",
        requires="sasrec",
    )  # fmt: skip
