"""p5: one text-to-text model for several task families, with identifiers for items and users."""

from __future__ import annotations

from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.methods.p5 import P5Settings
from training.methods.p5_examples import TasksSpec
from training.recipe import CodesSpec, OptimizerSpec, Recipe, RecipeError


def recipe(backbone: str = "none") -> Recipe:
    """Sequential, rating, direct, explanation and review prompts in one model; ``method.tasks.families`` selects some.

    ``method.codes.kind`` is the kind of item identifiers: ``random``, ``sequential``, ``collaborative`` or
    ``semantic``.

    Differences to the papers: a small decoder trained from scratch instead of T5, so the items of a history have a loss
    as well, and the whole-word embedding also applies to the answer; sequential prompts do not contain the user, since
    a request may be anonymous; a direct prompt has 10 candidates, not 100; the number of prompts of a family is a share
    of the items (in the proportions of P5, with a smaller total); digit groups of numbers are tokens of their own, one
    set per level, instead of those of SentencePiece.
    """
    if backbone != "none":
        raise RecipeError(f"recipe 'p5' trains its own network: backbone {backbone!r} is not allowed, only 'none'")
    return Recipe(
        name="p5",
        summary="one decoder for sequential, rating, direct, explanation and review prompts, over item identifiers",
        source="P5 (Geng et al. 2022) and OpenP5 (Xu et al. 2024), decoder only",
        history=HistorySpec(form="codes", limit=20, dropout=0.2),
        backbone=BackboneSpec(source="none", width=128, depth=4, heads=4, dropout=0.2),
        adapter=AdapterSpec(kind="none"),
        items=ItemsSpec(tower="id", text_source="minilm"),
        optimizer=OptimizerSpec(
            rate=1e-3, backbone_rate=1e-3, warmup=0.05, epochs=60, patience=6, positions=1024, clip=1.0
        ),
        method=P5Settings(beams=20, codes=CodesSpec(kind="collaborative", size=100), tasks=TasksSpec()),
    )
