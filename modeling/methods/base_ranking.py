"""Rankers, which score given candidates for a history, and retrieval followed by ranking.

A `CandidateRanker` scores candidates. `Ranker` is a list method: it builds lists from the scores of `score`. A vector
method is a ranker too (`VectorRanker`): its score is the inner product of the user's vector and the item's. `Rerank`
retrieves with a vector method and ranks with any ranker. Candidates of the catalog are scored in the order of their
rows and listed by `best_first`, here and in the service.

Shape legend: B histories, C candidates of one of them, D item dimension, N items, K items of an answer, F free titles.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import nn

from index import ItemIndex
from index.base import Keys
from modeling.artifact.part_names import Part
from modeling.encoder.prompt import FreeItem
from modeling.encoder.user_encoder import CannotReadText
from modeling.generation.api import GeneratedList, GenerationPrompt, GenerationSettings, ListQuery, OnWriting, Turn
from modeling.generation.consecutive import consecutive
from modeling.methods.base import ListMethod, VectorMethod

Item = int | FreeItem
"""A catalog row, or a title that the catalog does not hold."""
NOTHING_WRITTEN = GenerationSettings(1, 1)


@dataclass(frozen=True)
class RankPrompt:
    """One history and the candidates to score for it. A ranker may derive a class with the tokens it needs.

    Attributes:
        history: oldest item first, at most as many items as the ranker reads.
        candidates: distinct items.
        length: positions needed to score all candidates, at least 1; batches and queues are bounded by their sum.
    """

    history: tuple[Item, ...]
    candidates: tuple[Item, ...]
    length: int = 1


@dataclass(frozen=True)
class RankPart:
    """Candidates of a prompt that are scored in a batch of their own.

    Attributes:
        places: their indices among the candidates of the whole prompt, in the order of ``prompt.candidates``.
        prompt: to be scored. Its length is the number of positions that are read for it if parts are scored in order.
    """

    places: tuple[int, ...]
    prompt: RankPrompt


@runtime_checkable
class CandidateRanker(Protocol):
    """Scores given candidates. Not thread-safe."""

    reads: tuple[str, ...]
    """Accepted inputs: ``ids``, and ``text`` if titles outside the catalog can be in histories and among candidates."""
    history_limit: int
    """Maximum number of items read, counted from the newest."""

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free titles as items; raises `CannotReadText` if the ranker reads item ids only."""
        ...

    def prepare_candidates(
        self, history: Sequence[Item], candidates: Sequence[Item], user_id: str | None = None
    ) -> RankPrompt:
        """The prompt for one history, oldest item first, and one or more distinct candidates."""
        ...

    def divide(self, prompt: RankPrompt, most: int, *, turn: Turn = nullcontext) -> list[RankPart]:
        """Parts that hold each candidate once and, scored in separate batches, give the scores of the whole prompt.

        What all parts read is read once. A part takes at most ``most`` positions, or it cannot be divided further: one
        candidate, or candidates that are compared with each other. ``turn``: see `score`.
        """
        ...

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """Scores [C] of the candidates of each prompt, in their order; finite, higher is better.

        Candidates of several histories are scored together. A score does not depend on the batch, up to rounding.
        ``turn`` is a context manager that is entered around each use of the device.
        """
        ...


class Ranker(ListMethod):
    """A list method without generation. A subclass implements `score`, and `retrieve` if it does not score all items.

    Attributes:
        reads, history_limit: see `CandidateRanker`; ``history_limit`` is set by the method.
        catalog_size: N, set by the method.
    """

    reads: tuple[str, ...] = ("ids",)
    history_limit: int
    catalog_size: int
    default: GenerationSettings = NOTHING_WRITTEN
    limit: GenerationSettings = NOTHING_WRITTEN

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """See `CandidateRanker.score`; a history may be empty."""
        raise NotImplementedError

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Raises `CannotReadText`: a ranker reads item ids only unless it overrides this method."""
        raise CannotReadText("this model reads item ids only; leave out free titles")

    def prepare(self, history: Sequence[Item], user_id: str | None = None) -> GenerationPrompt:
        """The newest catalog rows of a history as the tokens of a prompt."""
        rows = tuple(item for item in history if not isinstance(item, FreeItem))[-self.history_limit :]
        return GenerationPrompt(rows or (0,), rows)

    def prepare_candidates(
        self, history: Sequence[Item], candidates: Sequence[Item], user_id: str | None = None
    ) -> RankPrompt:
        """See `CandidateRanker.prepare_candidates`; every item counts as one position."""
        newest = tuple(history[-self.history_limit :])
        return RankPrompt(newest, tuple(candidates), len(newest) + len(candidates))

    def divide(self, prompt: RankPrompt, most: int, *, turn: Turn = nullcontext) -> list[RankPart]:
        """See `CandidateRanker.divide`: for a score that is independent of the other candidates, each of which is one
        position."""
        before = prompt.length - len(prompt.candidates)
        return [
            RankPart(
                tuple(places),
                replace(prompt, candidates=prompt.candidates[places.start : places.stop], length=before + len(places)),
            )
            for places in consecutive([1] * len(prompt.candidates), most - before)
        ]

    def retrieve(self, rows: Sequence[int], wanted: ListQuery) -> NDArray[np.int64]:
        """The rows [C] to score for a list: at least ``wanted.k`` eligible rows, or all if there are fewer."""
        return eligible_rows(self.catalog_size, wanted)

    def rank(
        self, rows: Sequence[int], wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Distinct eligible rows for a history, best first, and their scores, descending, [K] each."""
        with turn():
            found_C = np.sort(self.retrieve(rows, wanted))
        if not len(found_C):
            return found_C, np.empty(0, np.float32)
        (scores_C,) = self.score([self.prepare_candidates(list(rows), found_C.tolist())], turn=turn)
        order_K = best_first(scores_C)[: wanted.k]
        return found_C[order_K], scores_C[order_K]

    def answer(
        self, prompt: GenerationPrompt, wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], int]:
        """Result of `rank` for a prompt of `prepare`, and how many rows at the end were filled in without a score."""
        return *self.rank(prompt.rows, wanted, turn=turn), 0

    def write(
        self,
        prompts: Sequence[GenerationPrompt],
        wanted: Sequence[ListQuery],
        settings: GenerationSettings = NOTHING_WRITTEN,
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[GeneratedList]:
        """The list of `answer` for each prompt; no text is generated."""
        answers = []
        for prompt, want in zip(prompts, wanted, strict=True):
            started = time.perf_counter()
            rows_K, scores_K, filled = self.answer(prompt, want, turn=turn)
            seconds = {"search": time.perf_counter() - started}
            answers.append(GeneratedList(rows_K, scores_K, filled, (), prompt.length, 0, seconds))
        return answers


class VectorRanker(Ranker):
    """A vector method as a ranker: the pointwise form, in which history and candidate are read separately. A free title
    can be a candidate if the item tower can encode it.

    Args:
        method: provides user and item vectors; its histories must not be empty.
    """

    def __init__(self, method: VectorMethod) -> None:
        self._method, encoder = method, method.encoder
        self.reads, self.history_limit = method.reads, encoder.history_limit
        self._index = method.index()
        self.catalog_size = self._index.size

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """See `CandidateRanker.read_titles`."""
        return self._method.encoder.read_titles(titles)

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """Scores of the candidates for each user's vector."""
        encoder = self._method.encoder
        with turn():
            user_BD = encoder.encode([encoder.prepare(list(prompt.history)) for prompt in prompts])
            return [
                self._index.scores(user_D[None], self._keys(prompt.candidates))[0]
                for user_D, prompt in zip(user_BD, prompts, strict=True)
            ]

    def _keys(self, candidates: Sequence[Item]) -> Keys:
        free = [item for item in candidates if isinstance(item, FreeItem)]
        found = iter(self._method.encoder.free_vectors(free) if free else ())
        known = iter(
            self._index.keys(np.array([item for item in candidates if not isinstance(item, FreeItem)], np.int64))
        )
        return np.stack([next(found if isinstance(item, FreeItem) else known) for item in candidates])


class Rerank(Ranker):
    """Retrieval followed by ranking: the retriever's best items in the ranker's order.

    Args:
        retriever: finds candidates among all items.
        ranker: scores these candidates only.
        candidates: number of items to retrieve; raised to the length of the requested list if that is longer.
        index: of the retriever, as it is served; None: exact search.
    """

    def __init__(
        self,
        retriever: VectorMethod,
        ranker: CandidateRanker,
        candidates: int,
        index: ItemIndex | None = None,
    ) -> None:
        self.retriever, self.ranker, self.candidates = retriever, ranker, candidates
        self.index = retriever.index() if index is None else index
        self.reads = tuple(name for name in retriever.reads if name in ranker.reads)
        self.history_limit = max(retriever.encoder.history_limit, ranker.history_limit)
        self.catalog_size = self.index.size

    @property
    def networks(self) -> Mapping[Part, nn.Module]:
        """The ranker's networks under their own names, and the retriever's under `Part.COLLABORATIVE`."""
        inside = nn.ModuleList(self.retriever.networks.values())
        return {**getattr(self.ranker, "networks", {}), **({Part.COLLABORATIVE: inside} if len(inside) else {})}

    def prepare_candidates(
        self, history: Sequence[Item], candidates: Sequence[Item], user_id: str | None = None
    ) -> RankPrompt:
        """See `CandidateRanker.prepare_candidates`; the ranker gets as much of the history as it reads."""
        return self.ranker.prepare_candidates(history[-self.ranker.history_limit :], candidates, user_id)

    def divide(self, prompt: RankPrompt, most: int, *, turn: Turn = nullcontext) -> list[RankPart]:
        """Parts of the ranker, see `CandidateRanker.divide`."""
        return self.ranker.divide(prompt, most, turn=turn)

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """Scores of the ranker, see `CandidateRanker.score`."""
        return self.ranker.score(prompts, turn=turn)

    def retrieve(self, rows: Sequence[int], wanted: ListQuery) -> NDArray[np.int64]:
        """The retriever's best eligible rows [C]; all eligible rows for an empty history."""
        if not rows:
            return super().retrieve(rows, wanted)
        encoder = self.retriever.encoder
        vector_1D = encoder.encode([encoder.prepare(list(rows)[-encoder.history_limit :])])
        most = max(self.candidates, wanted.k)
        _, (rows_C,) = self.index.search(vector_1D, most, exclude=[wanted.exclude], allowed=wanted.allowed)
        found_C: NDArray[np.int64] = rows_C[rows_C >= 0]
        return found_C


def best_first(scores_C: NDArray[np.floating]) -> NDArray[np.int64]:
    """Indices [C] of candidates from the highest score to the lowest; ties in order of index."""
    order_C: NDArray[np.int64] = np.argsort(-scores_C, kind="stable")
    return order_C


def ranker_of(model: Any) -> CandidateRanker | None:
    """The ranker of a loaded model: the model itself, or a `VectorRanker` of a vector method; None for other models."""
    if isinstance(model, CandidateRanker):
        return model
    return VectorRanker(model) if hasattr(model, "all_scores") else None


def eligible_rows(size: int, wanted: ListQuery) -> NDArray[np.int64]:
    """Rows that may be in the answer, ascending."""
    may_N = np.full(size, wanted.allowed is None)
    if wanted.allowed is not None:
        may_N[wanted.allowed] = True
    may_N[wanted.exclude] = False
    return np.flatnonzero(may_N).astype(np.int64)


def best_rows(scores_N: NDArray[Any], wanted: ListQuery) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The eligible rows with the highest ``scores_N``, and their scores, [K] each; ties are in row order."""
    rows = eligible_rows(len(scores_N), wanted)
    rows_K = rows[np.argsort(-scores_N[rows], kind="stable")[: wanted.k]]
    return rows_K, scores_N[rows_K].astype(np.float32)
