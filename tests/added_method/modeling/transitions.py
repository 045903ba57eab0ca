"""A first-order Markov chain over items: the next item by how often it followed the newest one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import WrittenCase
from modeling.artifact.tensor_files import save_arrays
from modeling.generation.api import Turn
from modeling.methods.base import LoadContext, Method, Record
from modeling.methods.base_ranking import Ranker, RankPrompt

COUNTS = "transitions.safetensors"


class TransitionRecord(Record):
    """``smoothing``: how often every item counts as having followed every other, by its popularity."""

    smoothing: float


class TransitionModel(Ranker):
    """Scores by counts.

    Args:
        counts_NN: how often item m followed item n.
        popular_N: shares of all interactions.
        smoothing: see `TransitionRecord`.
    """

    history_limit = 1

    def __init__(self, counts_NN: NDArray[np.float32], popular_N: NDArray[np.float32], smoothing: float) -> None:
        self.counts_NN, self.popular_N, self.smoothing = counts_NN, popular_N, smoothing
        self.catalog_size = len(popular_N)

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """How often each candidate followed the newest item; what is popular where nothing is known."""
        with turn():
            return [self._scores(prompt) for prompt in prompts]

    def _scores(self, prompt: RankPrompt) -> NDArray[np.float32]:
        rows_C, newest = np.array(prompt.candidates, np.int64), np.array(prompt.history[-1:], np.int64)
        counts_C = self.counts_NN[np.ix_(newest, rows_C)].sum(0)
        found_C: NDArray[np.float32] = (counts_C + self.smoothing * self.popular_N[rows_C]).astype(np.float32)
        return found_C


class Transitions(Method[TransitionRecord]):
    """One file of counts."""

    kind, shape, Record, Case = "transitions", "list", TransitionRecord, WrittenCase

    def save(self, folder: Path, model: TransitionModel) -> TransitionRecord:
        """Write the counts."""
        save_arrays({"counts": model.counts_NN, "popularity": model.popular_N}, folder / COUNTS)
        return TransitionRecord(smoothing=model.smoothing)

    def load(self, record: TransitionRecord, context: LoadContext) -> TransitionModel:
        """Raises ArtifactError for another catalog."""
        arrays, items = context.files.arrays(COUNTS), context.manifest.catalog_size
        if arrays["counts"].shape != (items, items):
            raise ArtifactError(f"{COUNTS} of {context.name} holds {arrays['counts'].shape}, expected {items} items")
        return TransitionModel(arrays["counts"], arrays["popularity"], record.smoothing)


METHOD = Transitions()
