"""Runs the stages of an adaptation and gives the backbone that they leave."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from modeling.encoder.build import Sources
from modeling.encoder.pooling import POOLINGS
from training.adaptation.backbones import Adapted
from training.adaptation.masked_next_token import MaskedNextToken
from training.adaptation.passages import passages_of
from training.adaptation.simcse import SimCse
from training.adaptation.spec import AdaptationSpec
from training.adaptation.summaries import SummaryStage
from training.adaptation.texts import texts_of
from training.data.splits import FittedOn, Split
from training.loop.stages import Stage, run_stages
from training.recipe import Recipe


def adapt(
    recipe: Recipe,
    split: Split,
    spec: AdaptationSpec,
    sources: Sources,
    *,
    work: Path,
    seed: int,
    fitted_on: FittedOn,
    console: Console,
) -> tuple[Sources, dict[str, dict[str, Any]]]:
    """The backbone of ``recipe`` after the stages of ``spec``, as a source, and the stages' figures.

    Args:
        recipe: of a language model.
        split: whose titles and training histories are read.
        spec: what is done; nothing without steps.
        sources: where the backbone is.
        work: folder of the stages; the backbone that is given stands there.
        seed: of texts, masks and weights.
        fitted_on: which histories are read.
        console: says which stage begins.

    Raises:
        BackboneError: it has no head, or its attention is not what the recipe asks for.
        OutOfTime: the run's budget ended.
    """
    summed = spec.passage_steps or POOLINGS[recipe.pooling.kind].needs_summary  # which needs new words in any case
    if not (spec.used or summed):
        return sources, {}
    plain = recipe.backbone.model_copy(update={"dropout": 0.0})
    adapted = Adapted(plain, sources.tokenizer or sources.backbone, sources.download)
    stages: list[Stage] = []
    if summed:
        passages = passages_of(recipe, split, fitted_on, adapted.pieces(), seed)
        stages.append(SummaryStage(adapted, recipe, passages, spec, seed))
    else:
        texts = texts_of(recipe, split, fitted_on, adapted.pieces(), seed)
        if spec.masked_steps:
            stages.append(MaskedNextToken(adapted, texts, spec, seed))
        if spec.simcse_steps:
            stages.append(SimCse(adapted, texts, spec, recipe.pooling, seed))
    reports = run_stages(stages, work, console)
    return replace(sources, backbone=adapted.folder, tokenizer=adapted.folder), reports
