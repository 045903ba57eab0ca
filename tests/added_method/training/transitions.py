"""Counts which item follows which in the training part."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from modeling.methods.transitions import TransitionModel  # found beside the project's own methods
from pydantic import Field

from modeling.artifact.manifest import Manifest
from training.evaluation.metrics import Metrics
from training.export import write_list_artifact
from training.loop.fit import FitOptions, Trained
from training.methods.base import TrainingMethod
from training.methods.next_token import evaluate_generator
from training.recipe import MethodSettings


class TransitionSettings(MethodSettings):
    """A first-order Markov chain."""

    kind: Literal["transitions"] = "transitions"
    smoothing: float = Field(0.1, gt=0)
    learns: ClassVar[bool] = False


class TransitionTraining(TrainingMethod[TransitionSettings]):
    """See the module."""

    kind, Settings = "transitions", TransitionSettings

    def fit(self, options: FitOptions) -> Trained:
        items = self.split.dataset.n_items
        counts_NN = np.zeros((items, items), np.float32)
        for row in self.split.train_rows(options.fitted_on):
            np.add.at(counts_NN, (row[:-1], row[1:]), 1)
        popularity_N = self.split.popularity(options.fitted_on).astype(np.float32)
        self.model = TransitionModel(counts_NN, popularity_N / popularity_N.sum(), self.settings.smoothing)
        return Trained(epochs=1.0, best_epoch=1.0, steps=1, stopped_by="epochs")

    def validate(self, seed: int) -> Metrics:
        popularity_N = self.split.popularity()
        return evaluate_generator(self.model, self.split.validation, popularity_N, seed=seed).metrics

    def write(self, folder: Path, **facts: Any) -> Manifest:
        return write_list_artifact(folder, self.recipe, self.split, self.model, **facts)


METHOD = TransitionTraining
