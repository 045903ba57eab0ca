"""Quality and speed of quantisation: the same artifact in fp32, bf16 and int8, over every question of a data set.

    python -m benchmarks.encoder.precision ARTIFACT --data DIR [--part validation|test] [--rounds 7] [--users 1000]

Quality of a dense artifact is that of the evaluation (full ranking, seen items left out), with the paired interval of
NDCG@10 against fp32, the share of the ten best items that stay, and the lowest cosine with fp32's vector. Then the fast
forward is timed on one history and on eight, precisions taking turns; medians are quoted. A generative artifact answers
`--users` of the questions as it is served, since writing takes longer; its lists are compared, and whole answers are
timed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from benchmarks.encoder.forward import milliseconds
from benchmarks.lib.agreement import lowest_cosine
from benchmarks.lib.results import ResultFile, rows_of
from index import Catalog, FlatIndex
from modeling.artifact.manifest import read_manifest
from modeling.encoder.user_encoder import UserEncoder
from modeling.generation.api import ListQuery
from modeling.generation.base import ItemGenerator
from modeling.inference.encoder_forward import compile_encoder
from modeling.inference.int8_linear import Precision
from modeling.methods import method_of
from modeling.methods.base_generative import load_generative
from modeling.methods.dense import load_artifact
from training.cli_common import open_dataset
from training.data.splits import Targets
from training.evaluation.full_ranking import encode_users, rank_all
from training.evaluation.metrics import paired_bootstrap, rank_report
from training.loop.fit import sample_targets
from training.methods.base import split_of
from training.methods.next_token import ranks_in, write_all
from training.provenance import require_same_questions

BATCHES = (1, 8)
BEST = 10
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Answer = Callable[[Sequence[Sequence[int]]], object]
"""Answers a batch of histories, oldest item first."""

RESULT = ResultFile(__file__, __doc__)


def model_megabytes(*models: torch.nn.Module) -> float:
    """Of language models and what is kept beside them, in MB (10^6 bytes); tied weights count once."""
    parts = [part for model in models for part in (*model.parameters(), *model.buffers())]
    return sum({id(part) if part.is_mkldnn else part.data_ptr(): part.nbytes for part in parts}.values()) / 1e6


def quality(
    ranks: dict[str, NDArray[np.int64]], best: dict[str, Sequence[NDArray[np.int64]]]
) -> dict[str, dict[str, Any]]:
    """Figures of every precision from the ranks of targets and the best items, those after the first against it."""
    rows: dict[str, dict[str, Any]] = {}
    first = next(iter(ranks))
    for name in ranks:
        metrics = rank_report(ranks[name], seed=0)
        rows[name] = {metric: round(metrics[metric], 4) for metric in ("recall@10", "ndcg@10")}
        if name != first:
            against = paired_bootstrap(ranks[name], ranks[first], seed=0)["ndcg@10"]
            same = [len(np.intersect1d(a, b)) / BEST for a, b in zip(best[name], best[first], strict=True)]
            rows[name] |= {
                "ndcg@10_difference": [round(x, 5) for x in (against.difference, against.low, against.high)],
                "best_10_kept": round(statistics.mean(same), 4),
            }
    return rows


def dense_quality(
    vectors: dict[str, NDArray[np.float32]], items_ND: NDArray[np.float32], targets: Targets
) -> dict[str, dict[str, Any]]:
    """The same from users' vectors, and how far these point apart."""
    histories = [history.astype(np.int64) for history in targets.histories()]
    index = FlatIndex.build(items_ND)
    ranks: dict[str, NDArray[np.int64]] = {}
    best: dict[str, Sequence[NDArray[np.int64]]] = {}
    for name, users_TD in vectors.items():
        ranks[name] = rank_all(users_TD, items_ND, targets.rows_T, histories, seed=0)
        _, rows_TK = index.search(users_TD, BEST, exclude=histories)
        best[name] = list(rows_TK)
    rows = quality(ranks, best)
    first, *others = vectors
    for name in others:
        rows[name]["lowest_cosine"] = round(lowest_cosine(vectors[name], vectors[first]), 5)
    return rows


def times(answers: dict[str, Answer], histories: list[list[int]], rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds a batch of every precision and size."""
    found: dict[str, dict[str, float]] = {name: {} for name in answers}
    for size in BATCHES:
        taken: dict[str, list[float]] = {name: [] for name in answers}
        for number in range(rounds + 1):
            batch = [histories[(number * size + place) % len(histories)] for place in range(size)]
            for name, answer in answers.items():
                taken[name].append(milliseconds(partial(answer, batch)))
        for name, values in taken.items():
            found[name][f"batch_{size}_ms"] = round(statistics.median(values[1:]), 2)
    return found


def longest(targets: Targets, limit: int) -> list[list[int]]:
    """The longest histories, as much of them as is read."""
    return [history[-limit:].tolist() for history in sorted(targets.histories(), key=len)[-64:]]


def dense_rows(folder: Path, targets: Targets, rounds: int, console: Console) -> dict[str, dict[str, Any]]:
    """A dense artifact in every precision."""
    encoders: dict[str, UserEncoder] = {}
    vectors: dict[str, NDArray[np.float32]] = {}
    for name in PRECISIONS:
        artifact = load_artifact(folder, precision=name)
        encoder = encoders[name] = artifact.encoder
        if reason := compile_encoder(encoder):
            console.print(f"{name}: the plain forward, since {reason}")
        with console.status(f"{name}: {len(targets.rows_T)} histories"):
            vectors[name] = encode_users(encoder, list(targets.histories()))
    rows = dense_quality(vectors, artifact.item_vectors_ND, targets)

    def answer(encoder: UserEncoder) -> Answer:
        return lambda batch: encoder.encode([encoder.prepare(history) for history in batch])

    answers = {name: answer(encoder) for name, encoder in encoders.items()}
    timed = times(answers, longest(targets, encoder.history_limit), rounds)
    for precision, encoder in encoders.items():
        rows[precision] |= {**timed[precision], "model_mb": round(model_megabytes(encoder.backbone), 1)}
    return rows


def generative_rows(folder: Path, targets: Targets, rounds: int, console: Console) -> dict[str, dict[str, Any]]:
    """A generative artifact in every precision: lists as they are answered."""
    catalog = Catalog.read(folder / "catalog.parquet")
    histories = list(targets.histories())
    writers: dict[str, ItemGenerator] = {}
    ranks: dict[str, NDArray[np.int64]] = {}
    best: dict[str, Sequence[NDArray[np.int64]]] = {}
    for name in PRECISIONS:
        artifact = load_generative(folder, catalog.popular(), precision=name)
        if artifact.precision != name:
            raise SystemExit(f"{folder.name} writes codes, and what writes codes is served in fp32 only")
        writers[name] = artifact.model
        with Progress(console=console) as bar:
            task = bar.add_task(f"{name}: histories", total=len(histories))
            rows_TK = write_all(artifact.model, histories, progress=partial(bar.advance, task))
        ranks[name] = ranks_in(rows_TK, targets.rows_T, len(catalog))
        best[name] = list(rows_TK[:, :BEST])
    rows = quality(ranks, best)

    def answer(writer: ItemGenerator) -> Answer:
        return lambda batch: writer.write(
            [writer.prepare(history) for history in batch], [ListQuery(BEST)] * len(batch)
        )

    answers = {name: answer(writer) for name, writer in writers.items()}
    timed = times(answers, longest(targets, artifact.model.history_limit), rounds)
    for precision, writer in writers.items():
        rows[precision] |= {**timed[precision], "model_mb": round(model_megabytes(*writer.networks.values()), 1)}
    return rows


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--part", default="validation", choices=["validation", "test"])
    parser.add_argument("--ties", default="file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--users", type=int, default=1000, help="questions that a generative artifact answers")
    parser.add_argument("--threads", type=int, default=1)
    RESULT.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    dataset = open_dataset(options.data, ties=options.ties, seed=0, strict=False, console=console)
    manifest = read_manifest(options.artifact)
    catalog = Catalog.read(options.artifact / "catalog.parquet")
    require_same_questions(options.artifact, manifest, catalog, dataset, options.part)
    targets = split_of(dataset, manifest.split).targets(options.part)
    if method_of(manifest, options.artifact.name)[0].shape == "list":
        asked = sample_targets(targets, options.users, seed=0)
        rows = generative_rows(options.artifact, asked, options.rounds, console)
    else:
        rows = dense_rows(options.artifact, targets, options.rounds, console)
    for name, row in rows.items():
        console.print(f"{name}: {row}")
    RESULT.publish(
        {"artifact": options.artifact.name, "data": dataset.name, "part": options.part, "rows": rows},
        options.result,
        rows_of(rows),
    )


if __name__ == "__main__":
    main()
