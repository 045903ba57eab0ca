"""What fewer bits cost and give: the same artifact in fp32, bf16 and int8, over every question of a data set.

    python -m benchmarks.precision ARTIFACT --data DIR [--part validation|test] [--rounds 7]

Quality is that of the evaluation (full ranking, seen items left out), with the paired interval of NDCG@10 against fp32,
the share of the ten best items that stay, and the lowest cosine with fp32's vector. Then the fast forward is timed on
one history and on eight, precisions taking turns; medians are quoted. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.agreement import lowest_cosine
from benchmarks.encoder import milliseconds
from index import FlatIndex
from modeling.artifact import load_artifact
from modeling.precision import Precision
from modeling.user_encoder import UserEncoder
from training.cli_common import open_dataset
from training.compare import split_of
from training.data.splits import Targets
from training.evaluate import encode_users, rank_all
from training.evaluation.metrics import paired_bootstrap, rank_report

BATCHES = (1, 8)
BEST = 10


def model_megabytes(encoder: UserEncoder) -> float:
    """Of the language model and what is kept beside it, in MB (10^6 bytes); tied weights count once."""
    parts = [*encoder.backbone.parameters(), *encoder.backbone.buffers()]
    return sum({part.data_ptr(): part.nbytes for part in parts}.values()) / 1e6


def quality(
    vectors: dict[str, NDArray[np.float32]], items_ND: NDArray[np.float32], targets: Targets
) -> dict[str, dict[str, Any]]:
    """Figures of every precision, those after the first against it."""
    histories = [history.astype(np.int64) for history in targets.histories()]
    index = FlatIndex.build(items_ND)
    ranks, best, rows = {}, {}, dict[str, dict[str, Any]]()
    first = next(iter(vectors))
    for name, users_TD in vectors.items():
        ranks[name] = rank_all(users_TD, items_ND, targets.rows_T, histories, seed=0)
        _, best[name] = index.search(users_TD, BEST, exclude=histories)
        metrics = rank_report(ranks[name], seed=0)
        rows[name] = {metric: round(metrics[metric], 4) for metric in ("recall@10", "ndcg@10")}
        if name != first:
            against = paired_bootstrap(ranks[name], ranks[first], seed=0)["ndcg@10"]
            same = [len(np.intersect1d(a, b)) / BEST for a, b in zip(best[name], best[first], strict=True)]
            rows[name] |= {
                "ndcg@10_difference": [round(x, 5) for x in (against.difference, against.low, against.high)],
                "best_10_kept": round(statistics.mean(same), 4),
                "lowest_cosine": round(lowest_cosine(users_TD, vectors[first]), 5),
            }
    return rows


def times(encoders: dict[str, UserEncoder], histories: list[list[int]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds a batch of every precision and size."""
    found: dict[str, dict[str, float]] = {name: {} for name in encoders}
    for size in BATCHES:
        taken: dict[str, list[float]] = {name: [] for name in encoders}
        for number in range(rounds + 1):
            batch = [histories[(number * size + place) % len(histories)] for place in range(size)]
            for name, encoder in encoders.items():
                prompts = [encoder.prepare(history) for history in batch]
                taken[name].append(milliseconds(lambda encoder=encoder, prompts=prompts: encoder.encode(prompts)))
        for name, values in taken.items():
            found[name][f"batch_{size}_ms"] = round(statistics.median(values[1:]), 2)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--part", default="validation", choices=["validation", "test"])
    parser.add_argument("--ties", default="file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    dataset = open_dataset(options.data, ties=options.ties, seed=0, strict=False, console=console)
    encoders: dict[str, UserEncoder] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    precisions: tuple[Precision, ...] = get_args(Precision)
    for name in precisions:
        artifact = load_artifact(options.artifact, precision=name)
        encoder = encoders[name] = artifact.encoder
        if reason := encoder.speed_up():
            console.print(f"{name}: the plain forward, since {reason}")
        targets = split_of(dataset, artifact.manifest.split).targets(options.part)
        with console.status(f"{name}: {len(targets.rows_T)} histories"):
            vectors[name] = encode_users(encoder, targets.histories())
    rows = quality(vectors, artifact.item_vectors_ND, targets)
    longest = sorted(targets.histories(), key=len)[-64:]
    limit = encoder.history_limit
    timed = times(encoders, [history[-limit:].tolist() for history in longest], options.rounds)
    for name, encoder in encoders.items():
        rows[name] |= {**timed[name], "model_mb": round(model_megabytes(encoder), 1)}
        console.print(f"{name}: {rows[name]}")
    print(json.dumps({"artifact": options.artifact.name, "data": dataset.name, "part": options.part, "rows": rows}))


if __name__ == "__main__":
    main()
