"""A running average of the trained weights: what is evaluated, selected and kept.

An exponential moving average over about an epoch of steps does what a decaying rate does at the end of a schedule, at
every step and without knowing where the end is (Polyak and Juditsky 1992; Izmailov et al. 2018 for the form over
epochs). Training itself goes on from the plain weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState

from modeling.artifact.tensor_files import save_tensors
from modeling.encoder.build import trainable


class WeightAverage(TrainerCallback):
    """Follows the trained weights of ``model``; ``horizon`` is the length of the average in steps, at least 1.

    During the first steps the average is shorter (as many steps as there were), so that it never drags the initial
    weights along.
    """

    FILE = "averaged.safetensors"

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self._decay = 1 - 1 / max(1.0, horizon)
        self._current = trainable(model)
        self._averaged = {name: parameter.detach().clone() for name, parameter in self._current.items()}
        self._steps = 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The model is where it is trained, by now: the average goes there too."""
        self._averaged = {name: tensor.to(self._current[name].device) for name, tensor in self._averaged.items()}

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An optimizer step was made: move the average."""
        self._steps = state.global_step
        decay = min(self._decay, 1 - 1 / max(1, self._steps))
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(list(self._averaged.values()), list(self._current.values()), self._steps)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the averaged weights inside this block, and its own again after it."""
        own = {name: parameter.detach().clone() for name, parameter in self._current.items()}
        self._copy(self._averaged)
        try:
            yield
        finally:
            self._copy(own)

    def apply(self) -> None:
        """Put the averaged weights into the model for good."""
        self._copy(self._averaged)

    def save(self, folder: Path) -> None:
        """Write the averaged weights beside the plain ones."""
        save_tensors(self._averaged, folder / self.FILE)

    def load(self, folder: Path) -> None:
        """Go on from the average in ``folder``, whose names and shapes are those of the model's weights."""
        saved = load_file(folder / self.FILE)
        for name, tensor in self._averaged.items():
            tensor.copy_(saved[name])

    def _copy(self, source: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._current.items():
                parameter.copy_(source[name])
