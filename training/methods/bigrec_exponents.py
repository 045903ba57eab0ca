"""Chooses the exponents of BIGRec's weights on validation (Bao et al. 2023, the re-weighting step).

The published grids are 0 to 99 for popularity and 0.01 to 99 for the collaborative weight, searched separately for each
metric and cut-off. Here one pair is chosen jointly, on a smaller grid, for NDCG@10; the artifact serves that pair.

Shape legend: T users, N items, G points of a grid.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from modeling.methods.bigrec import BigRecGenerator, Exponents
from training.data.splits import Targets
from training.evaluation.metrics import question_values

GRID = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 99.0)
BATCH = 32


def choose_exponents(writer: BigRecGenerator, targets: Targets, *, console: Console) -> dict[str, Any]:
    """Set ``writer.exponents`` to the pair with the best NDCG@10 on ``targets``, the smallest pair among equal ones.

    Returns:
        Figures for the manifest: NDCG@10 on ``targets`` without weights, and with the chosen pair.
    """
    collaborative = GRID if writer.collaborative is not None else (0.0,)
    pairs = [Exponents(*pair) for pair in itertools.product(GRID, collaborative)]
    ranks_GT = np.empty((len(pairs), len(targets)), np.int64)
    histories = [history.astype(np.int64) for history in targets.histories()]
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"exponents on {len(targets)} validation users", total=len(targets))
        for start in range(0, len(targets), BATCH):
            part = range(start, min(start + BATCH, len(targets)))
            distances = writer.read_distances([writer.prepare(histories[number].tolist()) for number in part])
            for number, distance_N in zip(part, distances, strict=True):
                ranks_GT[:, number] = _ranks(writer, distance_N, histories[number], int(targets.rows_T[number]), pairs)
            bar.advance(task, len(part))
    found_G = [float(question_values(ranks_T, cuts=(10,))["ndcg@10"].mean()) for ranks_T in ranks_GT]
    best = int(np.argmax(found_G))
    writer.exponents = pairs[best]
    console.print(
        f"exponents on {len(targets)} validation users: popularity {pairs[best].popularity:g}, collaborative "
        f"{pairs[best].collaborative:g}; NDCG@10 {found_G[best]:.4f}, without weights {found_G[0]:.4f}"
    )
    return {"exponents": {"users": len(targets), "ndcg@10": found_G[best], "unweighted_ndcg@10": found_G[0]}}


def _ranks(
    writer: BigRecGenerator,
    distance_N: NDArray[np.float32] | None,
    history: NDArray[np.int64],
    target: int,
    pairs: list[Exponents],
) -> NDArray[np.int64]:
    """Rank of ``target`` for each pair [G], without seen items; by popularity if all generated texts are empty."""
    eligible_N = np.ones(len(writer.names.tokens), bool)
    eligible_N[history] = False
    first_N = writer.names.place_N < writer.names.place_N[target]
    if distance_N is None:
        return np.full(len(pairs), 1 + np.count_nonzero(first_N & eligible_N))
    popular_N, collaborative_N = writer.weights(history.tolist())
    with np.errstate(divide="ignore"):
        logs = (np.log(writer.scaled(distance_N)), np.log1p(popular_N), np.log1p(collaborative_N))
    log_N, log_popular_N, log_collaborative_N = (values.astype(np.float32) for values in logs)
    ranks_G = np.empty(len(pairs), np.int64)
    for number, pair in enumerate(pairs):
        value_N = log_N - pair.popularity * log_popular_N - pair.collaborative * log_collaborative_N
        before_N = (value_N < value_N[target]) | ((value_N == value_N[target]) & first_N)
        ranks_G[number] = 1 + np.count_nonzero(before_N & eligible_N)
    return ranks_G
