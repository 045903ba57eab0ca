"""genre: the language model generates the title of the next item, constrained to the trie of all titles."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.trie import TrieSettings
from training.recipe import OptimizerSpec, Recipe, RecipeError, pretrained


def recipe(backbone: str = "tiny") -> Recipe:
    """Titles are truncated to ten tokens, which are unique for 94 % of the items of Amazon Beauty and for all films of
    the film data sets; items with equal tokens are ranked by popularity. Each further token costs a decoding step of
    all beams. With a pretrained backbone, whose tokenizer was not trained on the catalog, titles have up to 16 tokens.

    Differences to the paper: probabilities are normalised over the tokens that the trie allows, in the loss and in the
    search, instead of over the vocabulary (``method.among=vocabulary``), so that a small model need not learn how
    titles are spelt; scores are sums of log probabilities, not divided by length.

    Pretrained backbones are tuned with LoRA, ``tiny`` fully.
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
