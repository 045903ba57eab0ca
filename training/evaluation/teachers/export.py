"""Asks an artifact about every target of the training part: what it answers is for a student to learn from.

Shape legend: as in `training.evaluation.teachers.lists`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from modeling.artifact.manifest import Manifest
from modeling.artifact.verified import Files
from modeling.generation.api import ListQuery
from modeling.methods import load, method_of
from modeling.methods.base import HistoryEncoder
from modeling.methods.base_prompted import PromptRanker
from modeling.methods.base_ranking import CandidateRanker, VectorRanker, best_rows
from modeling.methods.bigrec import BigRecGenerator
from training.data.report import DataError
from training.data.splits import Split
from training.evaluation.teachers.lists import Teacher
from training.evaluation.teachers.passes import SHARE, encode_passes, passes_of
from training.evaluation.work import Work

BATCH = 256
RANKED = 16
"""Histories that a ranker is asked about between two steps of the progress bar."""
Lists = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Asked:
    """Targets of an export: R targets, ordered by user and position.

    Attributes:
        sequences: training rows of every user, oldest first.
        users_R, places_R: user of each target, and its position in the user's sequence.
        name: of the artifact, for messages.
        shared: see `training.evaluation.teachers.passes.passes_of`.
        console: for progress.
    """

    sequences: list[NDArray[Any]]
    users_R: NDArray[np.int64]
    places_R: NDArray[np.int64]
    name: str
    shared: bool
    console: Console

    @classmethod
    def of(cls, split: Split, newest: int | None, name: str, shared: bool, console: Console) -> Asked:
        """All targets of the training part, or the ``newest`` of each user."""
        sequences = list(split.train_rows())
        firsts = [1 if newest is None else max(1, len(rows) - newest) for rows in sequences]
        places = [np.arange(first, max(first, len(rows))) for first, rows in zip(firsts, sequences, strict=True)]
        users_R = np.repeat(np.arange(len(sequences)), [len(of_user) for of_user in places])
        return cls(sequences, users_R, np.concatenate(places).astype(np.int64), name, shared, console)

    def history(self, number: int) -> NDArray[np.int64]:
        """Rows before a target, oldest first."""
        found: NDArray[np.int64] = self.sequences[self.users_R[number]][: self.places_R[number]].astype(np.int64)
        return found

    def batches(self, size: int, limit: int) -> Iterator[list[int]]:
        """Numbers of targets whose histories, cut at ``limit``, are of near-equal length, with progress."""
        order = np.argsort(np.minimum(self.places_R, limit), kind="stable").tolist()
        with Work(self.console, f"asking {self.name}: {len(order):,} targets", len(order)) as work:
            for start in range(0, len(order), size):
                yield order[start : start + size]
                work(len(order[start : start + size]))


def ask_teacher(
    artifact: Files,
    split: Split,
    popular_N: NDArray[np.int64],
    *,
    top: int,
    newest: int | None,
    console: Console,
    candidates: Files | None = None,
    shared: bool = False,
) -> Teacher:
    """The lists of an artifact for the training part of ``split``.

    Its own lists hold seen items too: a student is trained on what follows, which may be one of them. With
    ``candidates`` they are the best unseen items of that artifact, as when it is served in two stages, in the order and
    with the scores of the ranker that is asked.

    Args:
        artifact: of any method, fitted on the training part.
        split: that it was trained on.
        popular_N: rows of its catalog, most popular first.
        top: items of a list.
        newest: targets of each user, the newest ones; None: all.
        console: for progress.
        candidates: dense artifact of the same split that finds the items of the lists; None: ``artifact`` does.
        shared: whether targets far on in a history share passes of the encoder, each of which then reads fewer items
            (`training.evaluation.teachers.passes.passes_of`).

    Raises:
        DataError: ``artifact`` does not score candidates that it is given, orders fewer than ``top`` of its own, or has
            no passes to be ``shared``.
        ArtifactError: one of the two cannot be loaded, or ``candidates`` is not dense.
    """
    asked = Asked.of(split, newest, artifact.name, shared, console)
    loaded = load(artifact, popular_N)
    model, manifest, dataset = loaded.model, loaded.manifest, split.dataset
    # Scores of a table are those that it is asked for; inner products are logits over all items.
    ranker = VectorRanker(model) if method_of(manifest, artifact.name)[0].own_index else model
    facts = {
        "artifact": artifact.name, "version": manifest.version, "recipe": manifest.recipe, "data": dataset.name,
        "data_sha256": dataset.sha256, "split": split.name, "ties": dataset.ties, "fitted_on": manifest.fitted_on,
        "items": dataset.n_items, "top": top,
    }  # fmt: skip
    facts |= {"shared_passes": SHARE} if shared else {}
    _check_teacher(ranker, artifact.name, top, given=candidates is not None)
    if candidates is not None:
        retriever = load(candidates, popular_N, shape="vector")
        found_by = retriever.manifest
        facts["candidates"] = {"artifact": candidates.name, "version": found_by.version, "recipe": found_by.recipe}
        rows_RK, scores_RK, vectors_RD = _ranked(ranker, retriever.model, asked, top)
    elif hasattr(model, "write"):
        if shared:
            raise DataError(f"artifact {artifact.name} writes its lists one history at a time: no pass can be shared")
        rows_RK, scores_RK, vectors_RD = _lists(model, asked, top)
    else:
        rows_RK, scores_RK, vectors_RD = _vectors(model, manifest, asked, top)
    return Teacher(facts, asked.users_R, asked.places_R, rows_RK, scores_RK, _item_vectors(model), vectors_RD)


def _check_teacher(model: Any, name: str, top: int, *, given: bool) -> None:
    """Whether every item of a list will have a score of the model's own."""
    if given and not isinstance(model, CandidateRanker):
        raise DataError(
            f"artifact {name} does not score candidates that it is given: leave --candidates-of out, and its own "
            "lists are written; rankers (tallrec, llamarec, llara) take them"
        )
    if not given and isinstance(model, PromptRanker) and top > model.candidates:
        raise DataError(
            f"artifact {name} scores {model.candidates} candidates of its own, and lists of {top} items are wanted: "
            "ask for fewer (--items), or name a dense artifact whose candidates it scores (--candidates-of)"
        )


def _vectors(model: Any, manifest: Manifest, asked: Asked, top: int) -> Lists:
    """By search among item vectors; scores are logits of the softmax that the model was trained with."""
    vectors_RD = _encoded(model.encoder, asked)
    scores_RK, rows_RK = model.index().search(vectors_RD, top)
    temperature = float(manifest.method.record.get("temperature", 1.0))
    return rows_RK.astype(np.int64), (scores_RK / temperature).astype(np.float32), vectors_RD


def _encoded(encoder: HistoryEncoder, asked: Asked) -> NDArray[np.float32]:
    """User vectors [R, D]; progress is counted in positions that are read."""
    passes = passes_of(encoder, asked.sequences, asked.users_R, asked.places_R, shared=asked.shared)
    name = f"asking {asked.name}: {len(asked.users_R):,} targets in {len(passes):,} passes"
    with Work(asked.console, name, sum(each.prompt.length for each in passes)) as work:
        return encode_passes(encoder, passes, work)


def _lists(model: Any, asked: Asked, top: int) -> Lists:
    """As the method ranks; scores are the method's."""
    count = len(asked.users_R)
    rows_RK, scores_RK = np.full((count, top), -1, np.int64), np.zeros((count, top), np.float32)
    for numbers in asked.batches(BATCH, model.history_limit):
        prompts = [model.prepare(asked.history(number).tolist()) for number in numbers]
        for number, answer in zip(numbers, model.write(prompts, [ListQuery(top)] * len(prompts)), strict=True):
            rows_RK[number, : len(answer.rows_K)] = answer.rows_K
            scores_RK[number, : len(answer.scores_K)] = answer.scores_K
    return rows_RK, scores_RK, np.zeros((count, 0), np.float32)


def _ranked(ranker: CandidateRanker, retriever: Any, asked: Asked, top: int) -> Lists:
    """The best unseen items of ``retriever`` in the order of ``ranker``, with its scores."""
    count, vectors_RD = len(asked.users_R), _encoded(retriever.encoder, asked)
    rows_RK, scores_RK = np.full((count, top), -1, np.int64), np.zeros((count, top), np.float32)
    for numbers in asked.batches(RANKED, ranker.history_limit):
        prompts = []
        for number in numbers:
            history = asked.history(number)
            (scores_N,) = retriever.all_scores(vectors_RD[number : number + 1])
            found_C, _ = best_rows(scores_N, ListQuery(top, history))
            prompts.append(ranker.prepare_candidates(history[-ranker.history_limit :].tolist(), found_C.tolist()))
        for number, prompt, scores_C in zip(numbers, prompts, ranker.score(prompts), strict=True):
            found_C = np.array(prompt.candidates, np.int64)
            order_C = np.lexsort((found_C, -scores_C))
            rows_RK[number, : len(order_C)], scores_RK[number, : len(order_C)] = found_C[order_C], scores_C[order_C]
    return rows_RK, scores_RK, np.zeros((count, 0), np.float32)


def _item_vectors(model: Any) -> NDArray[np.float32]:
    """Of a model that searches vectors, and of one that grounds texts in a space of titles; else none."""
    if isinstance(model, BigRecGenerator):
        found: NDArray[np.float32] = model.space.vectors_NH.float().cpu().numpy()
        return found
    if hasattr(model, "item_vectors_ND"):
        return np.asarray(model.item_vectors_ND, np.float32)
    return np.zeros((0, 0), np.float32)
