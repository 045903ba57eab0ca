"""llamarec: a language model orders lettered candidates of a dense artifact by one forward pass."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.llamarec import LlamarecSettings
from training.recipe import OptimizerSpec, Recipe, RecipeError, pretrained

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
    if backbone in ("none", "minilm"):
        raise RecipeError(f"'llamarec' asks a causal language model: backbone {backbone!r} is not allowed")
    small = not pretrained(backbone)
    return Recipe(
        name="llamarec",
        summary="language model orders lettered candidates of a dense artifact in one forward pass",
        source="LlamaRec (Yue et al. 2023)",
        history=HistorySpec(
            form="titles", limit=10, title_tokens=10 if small else 16, instruction=INSTRUCTION, dropout=0.0
        ),
        backbone=BackboneSpec(source=backbone, dropout=0.0),
        adapter=AdapterSpec(kind="full" if small else "lora", rank=8, alpha=32, dropout=0.0 if small else 0.05),
        items=ItemsSpec(tower="id"),
        optimizer=OptimizerSpec(
            rate=1e-4, backbone_rate=1e-4, schedule="linear", warmup=0.1, epochs=1, patience=3, positions=16,
            weight_decay=0.0,
        ),
        method=LlamarecSettings(),
        requires="sasrec",
    )  # fmt: skip
