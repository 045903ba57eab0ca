"""tiger: a transformer writes the semantic ID of the next item, code by code, along the tree of all IDs."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.trie import TrieSettings
from training.recipe import CodesSpec, OptimizerSpec, Recipe, RecipeError
from training.search_space.ranges import Between, OneOf, Space

SPACE: Space = {
    "optimizer.rate": Between(3e-4, 5e-3, log=True),
    "history.dropout": Between(0.0, 0.4),
    "backbone.dropout": Between(0.0, 0.4),
    "method.codes.size": OneOf((64, 128, 256)),
    "method.codes.collaborative": Between(0.0, 0.8),
}


def recipe(backbone: str = "none") -> Recipe:
    """Three codes of 256 an item from the vector of its title, and a fourth that tells equal ones apart.

    By default a decoder alone, with the loss at every code of a user's sequence, read once an epoch. The paper's form
    is ``backbone.kind=encoder-decoder`` with ``backbone.width=128``, ``backbone.heads=6``, ``backbone.dropout=0.1``
    and ``history.dropout=0``: a T5 of 4 + 4 layers, width 128, heads of 64, ReLU feed-forward of 1024, which reads at
    most 20 items in both directions and writes four codes; every prefix of a sequence is an example.
    ``history.user_buckets=2000`` puts a token of the hashed user in front.

    Against the paper, in both forms: titles read by minilm instead of titles, prices and brands by Sentence-T5;
    probabilities among the codes that exist after those before them, in the loss (``method.among=vocabulary`` is the
    paper's) and in the search, which goes along the tree of the IDs that exist; AdamW at a rate that falls with a
    cosine and averaged weights instead of .01 for 10,000 steps and an inverse square root after them; batches of
    ``optimizer.positions`` targets instead of 256 sequences. In the encoder-decoder: histories of near-equal lengths
    share a batch; a token stands in front of a history of nobody too, as which ``history.user_dropout`` of all are
    shown, so that one model answers with and without a user. ``method.codes.kind=residual-kmeans`` takes k-means
    on the title vectors instead of the RQ-VAE, ``method.codes.collaborative`` lets codes follow histories too.
    """
    if backbone != "none":
        raise RecipeError(f"recipe 'tiger' trains its own network: backbone {backbone!r} is not allowed, only 'none'")
    return Recipe(
        name="tiger",
        summary="semantic IDs: a transformer writes the codes of the next item along the tree of all IDs",
        source="TIGER (Rajput et al. 2023)",
        history=HistorySpec(form="codes", limit=20, dropout=0.2),
        backbone=BackboneSpec(source="none", width=256, depth=4, heads=4, dropout=0.4),
        adapter=AdapterSpec(kind="none"),
        items=ItemsSpec(tower="id", text_source="minilm"),
        optimizer=OptimizerSpec(
            rate=1e-3,
            backbone_rate=1e-3,
            schedule="cosine",
            warmup=0.02,
            epochs=14,
            patience=14,
            average_epochs=1,
            positions=512,
        ),
        method=TrieSettings(beams=20, validation_users=1500, among="children", codes=CodesSpec()),
    )
