"""genre: the language model writes the title of the next item, along the trie of all titles."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.trie import TrieSettings
from training.recipe import OptimizerSpec, Recipe, RecipeError, pretrained


def recipe(backbone: str = "tiny") -> Recipe:
    """Titles are cut at ten tokens: that names 94 % of a shop's items (Amazon Beauty) and all films of the film data
    sets; items of one name are told apart by popularity. Every further token is a further step of all beams. The
    tokenizer of a pretrained backbone was not made for the catalog and spells longer: there they are cut at 16.

    Against the paper: probabilities among the tokens that may follow in the trie, in the loss too, instead of among the
    whole vocabulary (``method.among=vocabulary``), which would spend a small model on how titles are spelt; scores are
    plain sums of their logarithms, not divided by length (a longer name is not a better one).

    A larger backbone is trained through LoRA, ``tiny`` whole.
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"'genre' writes with a causal language model: backbone {backbone!r} is not allowed")
    small = not pretrained(backbone)
    return Recipe(
        name="genre",
        summary="language model writes the next title, token by token along the trie of all titles",
        source="GENRE (De Cao et al. 2021), over a user's history instead of a document",
        history=HistorySpec(form="titles", limit=20, title_tokens=10 if small else 16, dropout=0.2 if small else 0.0),
        backbone=BackboneSpec(source=backbone, dropout=0.1 if small else 0.0),
        adapter=AdapterSpec(kind="full" if small else "lora", rank=16, alpha=32),
        items=ItemsSpec(tower="id"),
        optimizer=OptimizerSpec(
            rate=7e-4 if small else 1e-3, backbone_rate=7e-4 if small else 2e-4, schedule="cosine", warmup=0.03,
            epochs=8 if small else 20, patience=8 if small else 4, positions=128 if small else 512, weight_decay=0.05,
            average_epochs=0.5 if small else 0,
        ),
        method=TrieSettings(beams=20, among="children"),
    )  # fmt: skip
