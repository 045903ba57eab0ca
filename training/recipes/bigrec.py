"""bigrec: the language model generates the next title without constraints; the nearest catalog titles are returned."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.bigrec import BigRecSettings
from training.recipe import OptimizerSpec, Recipe, RecipeError, pretrained

INSTRUCTION = "Name the item that this user will choose next. Chosen so far:"
TINY_INSTRUCTION = "Chosen:"
"""The tokenizer of ``tiny`` has the words of the catalog; other words take several tokens."""


def recipe(backbone: str = "tiny") -> Recipe:
    """Instruction tuning over the titles of a history, four beams, grounding in the base model's title space.

    As published, the loss is on the titles of the prompt as well as on the answer, which makes every item of a sequence
    a target. Differences to the paper: all users are trained on, not 1,024 examples; LoRA on all linear maps (``tiny``
    is trained fully); titles are truncated to ten tokens, or to 16 with a pretrained backbone, whose tokenizer was not
    trained on the catalog and needs more tokens (one per digit of a year); no loss on the instruction, which is
    constant; a shorter prompt (`modeling/methods/bigrec_prompt.py`).

    Distances are weighted by popularity, with an exponent chosen on validation; ``--set requires=sasrec --id-model
    DIR`` adds a weight from the scores of a collaborative model.
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"'bigrec' writes with a causal language model: backbone {backbone!r} is not allowed")
    small = not pretrained(backbone)
    instruction = TINY_INSTRUCTION if small else INSTRUCTION
    return Recipe(
        name="bigrec",
        summary="language model writes the next title freely; the nearest titles of the catalog are the answer",
        source="BIGRec (Bao et al. 2023)",
        history=HistorySpec(
            form="titles", limit=10, title_tokens=10 if small else 16, instruction=instruction,
            dropout=0.2 if small else 0.0,
        ),
        backbone=BackboneSpec(source=backbone, dropout=0.1 if small else 0.0),
        adapter=AdapterSpec(kind="full" if small else "lora", rank=16, alpha=32),
        items=ItemsSpec(tower="id"),
        optimizer=OptimizerSpec(
            rate=1e-3, backbone_rate=1e-3 if small else 2e-4, schedule="cosine", warmup=0.03, epochs=12, patience=4,
            positions=512, weight_decay=0.05,
        ),
        method=BigRecSettings(beams=4, joined_marks=not small),
    )  # fmt: skip
