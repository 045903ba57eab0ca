"""Full-ranking evaluation of a user encoder: the same code selects on validation and reports on test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index import ItemIndex
from modeling.encoder.prompt import Prompt
from modeling.methods.base import HistoryEncoder
from training.data.splits import Targets
from training.evaluation.metrics import Metrics, rank_report, target_ranks

BATCH_POSITIONS = 4096
SCORE_BLOCK = 512
Score = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Scores [B, N] of all items for user vectors [B, D]."""
SHOWN = 20
"""Length of the top lists behind coverage, novelty and popularity lift."""


@dataclass(frozen=True)
class Evaluation:
    """T questions answered.

    ``ranks_T`` (1 is best) come from exact scores; ``top_rows_TK`` are what the served index returns, and
    ``index_metrics`` is what those lists alone score, so an approximate index shows its loss here. ``kept_ranks_T`` are
    the ranks with seen items left in, where they were asked for.
    """

    ranks_T: NDArray[np.int64]
    top_rows_TK: NDArray[np.int64]
    metrics: Metrics
    index_metrics: dict[str, float]
    targets: Targets
    kept_ranks_T: NDArray[np.int64] | None = None


def encode_users(
    encoder: HistoryEncoder,
    histories: Sequence[NDArray[Any]],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float32]:
    """User vectors [U, D]; near-equal lengths share a batch, which changes no vector beyond rounding."""
    limit = encoder.history_limit
    prompts = [encoder.prepare(np.asarray(history[-limit:]).tolist()) for history in histories]
    out = np.empty((len(prompts), 0), np.float32)
    for rows in length_batches(prompts):
        vectors_BD = encoder.encode([prompts[row] for row in rows])
        if not out.shape[1]:
            out = np.empty((len(prompts), vectors_BD.shape[1]), np.float32)
        out[rows] = vectors_BD
        progress(len(rows))
    return out


def length_batches(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Numbers of prompts in batches of near-equal length, of at most `BATCH_POSITIONS` padded positions."""
    batches: list[list[int]] = []
    current: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: prompts[row].length):
        if current and (len(current) + 1) * prompts[row].length > BATCH_POSITIONS:
            batches.append(current)
            current = []
        current.append(row)
    return [*batches, current] if current else batches


def rank_all(
    users_TD: NDArray[np.float32],
    items_ND: NDArray[np.float32],
    targets_T: NDArray[np.int64],
    seen: Sequence[NDArray[Any]],
    *,
    seed: int,
) -> NDArray[np.int64]:
    """As `ranks_of`, by inner products with item vectors [N, D]."""
    return ranks_of(users_TD, lambda users_BD: users_BD @ items_ND.T, targets_T, seen, seed=seed)


def ranks_of(
    users_TD: NDArray[np.float32],
    score: Score,
    targets_T: NDArray[np.int64],
    seen: Sequence[NDArray[Any]],
    *,
    seed: int,
) -> NDArray[np.int64]:
    """Rank of each target (1 is best) over the whole catalog, seen items left out, ties broken at random."""
    rng = np.random.default_rng([seed, 4])
    blocks = [slice(start, start + SCORE_BLOCK) for start in range(0, len(users_TD), SCORE_BLOCK)]
    return np.concatenate(
        [target_ranks(score(users_TD[block]), targets_T[block], seen[block], rng) for block in blocks]
    )


def evaluate(
    encoder: HistoryEncoder,
    score: Score,
    index: ItemIndex,
    targets: Targets,
    popularity_N: NDArray[np.int64],
    *,
    seed: int = 0,
    kept: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Answer every question of ``targets``, exactly by ``score`` and through the served index; ``kept``: rank seen
    items too."""
    histories = [history.astype(np.int64) for history in targets.histories()]
    users_TD = encode_users(encoder, histories, progress=progress)
    ranks_T = ranks_of(users_TD, score, targets.rows_T, histories, seed=seed)
    _, top_rows_TK = index.search(users_TD, SHOWN, exclude=histories)
    found = evaluation_of(ranks_T, top_rows_TK, targets, histories, popularity_N, seed=seed)
    if not kept:
        return found
    nothing = [np.empty(0, np.int64)] * len(targets)
    return replace(found, kept_ranks_T=ranks_of(users_TD, score, targets.rows_T, nothing, seed=seed))


def evaluation_of(
    ranks_T: NDArray[np.int64],
    top_rows_TK: NDArray[np.int64],
    targets: Targets,
    histories: Sequence[NDArray[np.int64]],
    popularity_N: NDArray[np.int64],
    *,
    seed: int,
) -> Evaluation:
    """All figures of ranked questions."""
    profile_T = np.array([float(popularity_N[history].mean()) for history in histories])
    metrics = rank_report(
        ranks_T,
        top_rows_TK=top_rows_TK,
        popularity_N=popularity_N,
        history_popularity_T=profile_T,
        seed=seed,
    )
    return Evaluation(ranks_T, top_rows_TK, metrics, _of_lists(top_rows_TK, targets.rows_T), targets)


def _of_lists(top_rows_TK: NDArray[np.int64], targets_T: NDArray[np.int64], cut: int = 10) -> dict[str, float]:
    """Recall and NDCG of lists as they were returned."""
    hits_TK = top_rows_TK[:, :cut] == targets_T[:, None]
    gains_K = 1 / np.log2(np.arange(2, hits_TK.shape[1] + 2))
    return {f"recall@{cut}": float(hits_TK.any(1).mean()), f"ndcg@{cut}": float((hits_TK * gains_K).sum(1).mean())}
