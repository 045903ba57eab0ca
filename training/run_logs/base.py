"""The seam of run loggers: what every one of them is told of a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

PROJECT = "anyo"
"""Experiment (MLflow) or project (W&B) that runs belong to."""


class RunLog(ABC):
    """One run in one tracker. It is made before training, so a tracker that cannot be used is told of at once.

    Args:
        where: what stands after the colon of ``--log NAME:WHERE``; "" without.
        name: of the run.
        facts: what the run is asked for: recipe, settings, data, seed.

    Raises:
        RecipeError: the package is missing, or ``where`` is not allowed.
    """

    allowed: ClassVar[str]
    """Description of the values allowed after the colon."""

    @abstractmethod
    def __init__(self, where: str, name: str, facts: Mapping[str, str]) -> None: ...

    @abstractmethod
    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures of a training step: loss, learning rate, validation."""

    @abstractmethod
    def finish(self, facts: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """End the run as finished, with the artifact's name and version and its validation metrics."""

    @abstractmethod
    def fail(self, reason: str) -> None:
        """End the run as failed."""
