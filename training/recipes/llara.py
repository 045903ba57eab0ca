"""llara: the language model chooses one of twenty candidates; each title has the id model's item vector next to it."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.llara import LlaraSettings
from training.recipe import OptimizerSpec, Recipe, RecipeError, pretrained


def recipe(backbone: str = "tiny") -> Recipe:
    """Loss on the answer's tokens, with a curriculum from placeholders to item vectors; greedy decoding.

    Differences to the paper: one prompt, with one candidate per line, instead of three; titles are truncated to ten
    tokens (16 with a pretrained backbone); one random item of every window is the answer in an epoch; when served, and
    for metrics over the whole catalog, the candidates are the best items of the required ``sasrec``. ``tiny`` was
    pretrained on titles only and lacks abilities of a larger model, so it is trained fully, learns to copy first, reads
    an item's vector before its title (``method.slots=before``), and has a second loss that predicts the answer's slot
    (``method.match``).

    The paper orders no candidates. Here the artifact also ranks given ones, by the probability of each title among
    those in its prompt (`modeling/methods/llara.py`).
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"'llara' writes with a causal language model: backbone {backbone!r} is not allowed")
    small = not pretrained(backbone)
    return Recipe(
        name="llara",
        summary="language model chooses among candidates of an id model, titles beside projected item vectors",
        source="LLaRA (Liao et al. 2024)",
        history=HistorySpec(
            form="titles", limit=10, title_tokens=10 if small else 16,
            instruction="Chosen:" if small else "This user has chosen:",
            dropout=0.0,
        ),
        backbone=BackboneSpec(source=backbone, dropout=0.0),
        adapter=AdapterSpec(kind="full" if small else "lora", rank=8, alpha=32, dropout=0.0 if small else 0.1),
        items=ItemsSpec(tower="id"),
        optimizer=OptimizerSpec(
            rate=8e-4, backbone_rate=8e-4, schedule="cosine", warmup=0.05, epochs=5, patience=5, positions=128,
            weight_decay=1e-5,
        ),
        method=LlaraSettings(
            beams=1, candidates=20, copying=2_400_000 if small else 0, slots="before" if small else "after",
            match=1.0 if small else 0.0,
        ),
        requires="sasrec",
    )  # fmt: skip
