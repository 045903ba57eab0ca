"""Requests to the engines, and their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from index.base import ItemIndex, Keys
from index.filters.language import Filter
from modeling.encoder.prompt import Prompt
from modeling.generation.api import GeneratedList, GenerationPrompt, GenerationSettings, ListQuery
from modeling.generation.sentence import Sentence, SentencePrompt
from modeling.methods.base_ranking import RankPart, RankPrompt

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Work of one request on the device: a prompt (or the vector it gave before) and what to search for.

    `exclude` holds rows never to return, `allowed` the only rows to return (None: all), which are those that pass
    `wanted`. `positions` are those that will have to be read (0: all of the prompt). With `candidates` nothing is
    searched: these are scored. `further`: not the first entry of its request, so that it does not count as another
    request that waits.
    """

    prompt: Prompt | None
    k: int
    exclude: NDArray[np.int64]
    allowed: NDArray[np.int64] | None = None
    vector_D: NDArray[np.float32] | None = None
    positions: int = 0
    candidates: Candidates | None = None
    wanted: Filter | None = None
    further: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Items to score: rows of the catalog, vectors of free titles behind them, and the index that has the rows: as it
    was when they were looked up, so that no later change of an item takes them away."""

    rows_C: NDArray[np.int64]
    free_FW: Keys
    index: ItemIndex


@dataclass(frozen=True, slots=True)
class Found:
    """Result of the work: catalog rows and scores, best first (of candidates their places and scores, in the order
    given), the user vector, and seconds by stage."""

    rows_K: NDArray[np.int64]
    scores_K: NDArray[np.float32]
    vector_D: NDArray[np.float32]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class WriteWork:
    """One request for generation; `settings` has both fields set."""

    prompt: GenerationPrompt
    wanted: ListQuery
    settings: GenerationSettings

    @property
    def positions(self) -> int:
        """Positions on the device: those of the prompt, and the most that all beams may generate."""
        assert self.settings.beams is not None and self.settings.max_new_tokens is not None
        return self.prompt.length + self.settings.beams * self.settings.max_new_tokens


@dataclass(frozen=True, slots=True, eq=False)
class RankWork:
    """Candidates of one request, or a part of them, to be scored."""

    prompt: RankPrompt

    @property
    def positions(self) -> int:
        """Positions on the device."""
        return self.prompt.length


@dataclass(frozen=True, slots=True, eq=False)
class DivisionWork:
    """Candidates of one request, to be divided into parts of at most `most` positions, each a `RankWork`."""

    prompt: RankPrompt
    most: int

    @property
    def positions(self) -> int:
        """Positions on the device: an id model may read the history."""
        return 1 + len(self.prompt.history)


@dataclass(frozen=True, slots=True, eq=False)
class SentenceWork:
    """The sentence of one request, to be decoded among those that are allowed."""

    prompt: SentencePrompt

    @property
    def positions(self) -> int:
        """Positions on the device."""
        return self.prompt.length


@dataclass(frozen=True, slots=True)
class Said:
    """The sentence of one request, and seconds by stage, waiting included."""

    sentence: Sentence
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Divided:
    """The parts of one request's candidates, and seconds by stage, waiting included."""

    parts: Sequence[RankPart]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of candidates in the order given, and seconds by stage, waiting included."""

    scores_C: NDArray[np.float32]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Writing:
    """The generated list of one request, and seconds by stage, waiting included."""

    written: GeneratedList
    seconds: dict[str, float]


Encode = Callable[[Sequence[Prompt]], NDArray[np.float32]]
Hits = tuple[NDArray[np.int64], NDArray[np.float32]]  # (rows_K, scores_K)
DecodeSession = Callable[[NDArray[np.float32], Sequence[Work]], list[Hits]]


def one_by_one_on_failure(compute: Callable[[Sequence[Any]], Sequence[Any]], inputs: Sequence[Any]) -> list[Any]:
    """Return `compute(inputs)` as a list or, if that raises, each input's own result or exception."""
    try:
        return list(compute(inputs))
    except Exception as error:
        if len(inputs) == 1:
            return [error]
        log.warning("a batch failed; computing it row by row", requests=len(inputs), error=repr(error))
    results: list[Any] = []
    for one in inputs:
        try:
            results.append(compute([one])[0])
        except Exception as error:
            results.append(error)
    return results
