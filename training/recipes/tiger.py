"""tiger: a transformer generates the semantic ID of the next item, code by code, along the trie of all IDs."""

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
    """Three codes of 256 per item, from its title vector, and a fourth code that distinguishes equal ones.

    By default a decoder, with the loss on every code of a user's sequence, read once per epoch. The paper's form is
    ``backbone.kind=encoder-decoder`` with ``backbone.width=128``, ``backbone.heads=6``, ``backbone.dropout=0.1`` and
    ``history.dropout=0``: a T5 of 4 + 4 layers, width 128, heads of 64, ReLU feed-forward of 1024, which reads up to 20
    items bidirectionally and generates four codes; every prefix of a sequence is an example.
    ``history.user_buckets=2000`` puts a token of the hashed user id in front.

    Differences to the paper, in both forms: titles encoded by minilm instead of titles, prices and brands by
    Sentence-T5; probabilities are normalised over the codes that the trie allows, in the loss
    (``method.among=vocabulary`` is the paper's) and in the search, which is constrained to existing IDs; AdamW with a
    cosine schedule and averaged weights instead of a rate of 0.01 for 10,000 steps followed by inverse square root
    decay; batches of ``optimizer.positions`` targets instead of 256 sequences. In the encoder-decoder: batches have
    histories of similar lengths; histories without a user begin with an unknown-user token, which also replaces the
    user token in a share ``history.user_dropout`` of the training histories, so that one model serves requests with and
    without a user. ``method.codes.kind=residual-kmeans`` replaces the RQ-VAE by k-means on the title vectors;
    ``method.codes.collaborative`` makes codes depend on histories too.
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
