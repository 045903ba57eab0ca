"""Builds count-based recommenders from the training part: popularity, Markov transitions, item-to-item similarity."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from modeling.artifact.manifest import Manifest
from modeling.methods.counts import CountsModel, Rule
from training.data.splits import FittedOn
from training.effects import Effect
from training.evaluation.counting import (
    DECAY,
    LAST,
    hybrid_knn_counts,
    item_knn_counts,
    markov_counts,
    popularity_counts,
)
from training.evaluation.full_ranking import evaluate
from training.evaluation.metrics import Metrics
from training.export import write_counted_artifact
from training.loop.fit import FitOptions, Trained
from training.methods.base import Job, TrainingMethod
from training.recipe import MethodSettings, Recipe, RecipeError

SIMILARITY = {"item-knn": item_knn_counts, "hybrid-knn": hybrid_knn_counts}
"""Rules that compare items, and what computes the table of each."""


class CountsSettings(MethodSettings):
    """Settings of count-based recommenders; ``rule``: kind of counts."""

    kind: Literal["counts"] = "counts"
    rule: Rule = "popularity"
    last: int = Field(LAST, ge=1, description="number of newest items used, item-knn and hybrid-knn only")
    decay: float = Field(
        DECAY, gt=0, le=1, description="weight of an item relative to the newer one, item-knn and hybrid-knn only"
    )
    neighbours: int | None = Field(
        None,
        ge=1,
        description="number of most similar items kept for each item; None: all; item-knn and hybrid-knn only",
    )
    learns: ClassVar[bool] = False

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """``last``, ``decay`` and ``neighbours`` have an effect with rules of similarity only."""

        def similarity(recipe: Recipe) -> bool:
            return isinstance(recipe.method, CountsSettings) and recipe.method.rule in SIMILARITY

        effect = Effect("method.rule='item-knn' or 'hybrid-knn'", similarity)
        return {"last": effect, "decay": effect, "neighbours": effect}

    def reads_titles(self, recipe: Recipe) -> bool:
        """See `MethodSettings.reads_titles`: ``hybrid-knn`` compares them."""
        return self.rule == "hybrid-knn"


def no_backbone(name: str, backbone: str) -> None:
    """Raises `RecipeError` for a backbone other than ``none``."""
    if backbone != "none":
        raise RecipeError(f"recipe {name!r} has no network: backbone {backbone!r} is not allowed, only 'none'")


class CountsTraining(TrainingMethod[CountsSettings]):
    """Builds a `modeling.methods.counts.CountsModel`."""

    kind, Settings = "counts", CountsSettings

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.model: CountsModel | None = None

    def fit(self, options: FitOptions) -> Trained:
        """See `TrainingMethod.fit`: one pass over the interactions."""
        start = time.perf_counter()
        self.model = self._counted(options.fitted_on)
        seconds = time.perf_counter() - start
        return Trained(epochs=1.0, best_epoch=1.0, steps=1, seconds=seconds, stopped_by="epochs")

    def _counted(self, fitted_on: FittedOn) -> CountsModel:
        chosen = self.settings
        if chosen.rule == "popularity":
            return popularity_counts(self.split, fitted_on)
        if chosen.rule == "markov":
            return markov_counts(self.split, fitted_on)
        count = SIMILARITY[chosen.rule]
        return count(self.split, fitted_on, last=chosen.last, decay=chosen.decay, neighbours=chosen.neighbours)

    def validate(self, seed: int) -> Metrics:
        """See `TrainingMethod.validate`."""
        assert self.model is not None
        model = self.model
        return evaluate(
            model.encoder, model.all_scores, model.index(), self.split.validation, self.split.popularity(), seed=seed
        ).metrics

    def write(self, folder: Path, **facts: Any) -> Manifest:
        """See `training.export.write_counted_artifact`."""
        assert self.model is not None
        return write_counted_artifact(folder, self.recipe, self.split, self.model, **facts)


METHOD = CountsTraining
