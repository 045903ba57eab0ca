"""Asks an artifact about every target of the training part: what it answers is for a student to learn from.

Shape legend: as in `training.evaluation.teacher_lists`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from index import FlatIndex
from modeling.artifact.manifest import Manifest
from modeling.artifact.verified import Files
from modeling.generation.api import ListQuery
from modeling.methods import load
from modeling.methods.base_prompted import PromptRanker
from modeling.methods.base_ranking import CandidateRanker, best_rows
from modeling.methods.bigrec import BigRecGenerator
from training.data.report import DataError
from training.data.splits import Split
from training.evaluation.full_ranking import encode_users
from training.evaluation.teacher_lists import Teacher

BATCH = 256
RANKED = 16
"""Histories that a ranker is asked about between two steps of the progress bar."""
Lists = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


def ask_teacher(
    artifact: Files,
    split: Split,
    popular_N: NDArray[np.int64],
    *,
    top: int,
    newest: int | None,
    console: Console,
    candidates: Files | None = None,
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

    Raises:
        DataError: ``artifact`` does not score candidates that it is given, or orders fewer than ``top`` of its own.
        ArtifactError: one of the two cannot be loaded, or ``candidates`` is not dense.
    """
    users_R, positions_R, histories = _questions(split, newest)
    loaded = load(artifact, popular_N)
    model, manifest, dataset = loaded.model, loaded.manifest, split.dataset
    facts = {
        "artifact": artifact.name, "version": manifest.version, "recipe": manifest.recipe, "data": dataset.name,
        "data_sha256": dataset.sha256, "split": split.name, "ties": dataset.ties, "fitted_on": manifest.fitted_on,
        "items": dataset.n_items, "top": top,
    }  # fmt: skip
    _check_teacher(model, artifact.name, top, given=candidates is not None)
    retriever = None if candidates is None else load(candidates, popular_N, shape="vector")
    if candidates is not None and retriever is not None:
        found_by = retriever.manifest
        facts["candidates"] = {"artifact": candidates.name, "version": found_by.version, "recipe": found_by.recipe}
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"asking {artifact.name}: {len(histories)} targets", total=len(histories))

        def advance(done: int) -> None:
            bar.advance(task, done)

        if retriever is not None:
            rows_RK, scores_RK, vectors_RD = _ranked(model, retriever.model, histories, top, advance)
        else:
            ask = _lists if hasattr(model, "write") else _vectors
            rows_RK, scores_RK, vectors_RD = ask(model, manifest, histories, top, advance)
    return Teacher(facts, users_R, positions_R, rows_RK, scores_RK, _item_vectors(model), vectors_RD)


def _check_teacher(model: Any, name: str, top: int, *, given: bool) -> None:
    """Whether every item of a list will have a score of the model's own."""
    if given and not isinstance(model, CandidateRanker):
        raise DataError(
            f"artifact {name} does not score candidates that it is given: leave --candidates-of out, and its own "
            "lists are written; rankers (tallrec, llamarec) take them"
        )
    if not given and isinstance(model, PromptRanker) and top > model.candidates:
        raise DataError(
            f"artifact {name} scores {model.candidates} candidates of its own, and lists of {top} items are wanted: "
            "ask for fewer (--items), or name a dense artifact whose candidates it scores (--candidates-of)"
        )


def _questions(
    split: Split, newest: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.int64]]]:
    """Users, places of targets in their sequences, and what comes before each."""
    users, positions, histories = [], [], []
    for user, rows in enumerate(split.train_rows()):
        first = 1 if newest is None else max(1, len(rows) - newest)
        for position in range(first, len(rows)):
            users.append(user)
            positions.append(position)
            histories.append(rows[:position])
    return np.array(users, np.int64), np.array(positions, np.int64), histories


def _vectors(
    model: Any, manifest: Manifest, histories: list[NDArray[np.int64]], top: int, progress: Callable[[int], object]
) -> Lists:
    """By search among item vectors; scores are logits of the softmax that the model was trained with."""
    vectors_RD = encode_users(model.encoder, histories, progress=progress)
    scores_RK, rows_RK = FlatIndex.build(model.item_vectors_ND).search(vectors_RD, top)
    temperature = float(manifest.method.record.get("temperature", 1.0))
    return rows_RK.astype(np.int64), (scores_RK / temperature).astype(np.float32), vectors_RD


def _lists(
    model: Any, manifest: Manifest, histories: list[NDArray[np.int64]], top: int, progress: Callable[[int], object]
) -> Lists:
    """As the method ranks; scores are the method's."""
    rows_RK = np.full((len(histories), top), -1, np.int64)
    scores_RK = np.zeros((len(histories), top), np.float32)
    for start in range(0, len(histories), BATCH):
        prompts = [model.prepare(history.tolist()) for history in histories[start : start + BATCH]]
        for number, answer in enumerate(model.write(prompts, [ListQuery(top)] * len(prompts)), start):
            rows_RK[number, : len(answer.rows_K)] = answer.rows_K
            scores_RK[number, : len(answer.scores_K)] = answer.scores_K
        progress(len(prompts))
    return rows_RK, scores_RK, np.zeros((len(histories), 0), np.float32)


def _ranked(
    ranker: CandidateRanker,
    retriever: Any,
    histories: list[NDArray[np.int64]],
    top: int,
    progress: Callable[[int], object],
) -> Lists:
    """The best unseen items of ``retriever`` in the order of ``ranker``, with its scores."""
    rows_RK = np.full((len(histories), top), -1, np.int64)
    scores_RK = np.zeros((len(histories), top), np.float32)
    items_ND, vectors_RD = retriever.item_vectors_ND, encode_users(retriever.encoder, histories)
    for start in range(0, len(histories), RANKED):
        prompts, taken = [], range(start, min(start + RANKED, len(histories)))
        for number in taken:
            history = histories[number].astype(np.int64)
            found_C, _ = best_rows(items_ND @ vectors_RD[number], ListQuery(top, history))
            newest = history[-ranker.history_limit :]
            prompts.append(ranker.prepare_candidates(newest.tolist(), found_C.tolist()))
        for number, prompt, scores_C in zip(taken, prompts, ranker.score(prompts), strict=True):
            found_C = np.array(prompt.candidates, np.int64)
            order_C = np.lexsort((found_C, -scores_C))
            rows_RK[number, : len(order_C)], scores_RK[number, : len(order_C)] = found_C[order_C], scores_C[order_C]
        progress(len(taken))
    return rows_RK, scores_RK, np.zeros((len(histories), 0), np.float32)


def _item_vectors(model: Any) -> NDArray[np.float32]:
    """Of a model that searches vectors, and of one that grounds texts in a space of titles; else none."""
    if isinstance(model, BigRecGenerator):
        found: NDArray[np.float32] = model.space.vectors_NH.float().cpu().numpy()
        return found
    if hasattr(model, "item_vectors_ND"):
        return np.asarray(model.item_vectors_ND, np.float32)
    return np.zeros((0, 0), np.float32)
