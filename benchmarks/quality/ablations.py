"""Ablation of the inputs of a trained artifact: permute titles among items, or ids among items, and rank again.

Each permutation breaks one source of information and leaves everything else as it was trained, so the loss of NDCG@10
says how much of the answer came from there (permutation importance, Breiman 2001). Intervals are paired over users. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.lib.results import ResultFile
from index import Catalog, FlatIndex
from modeling.artifact.manifest import read_manifest
from modeling.encoder.prompt import TitleTokens
from modeling.methods.dense import Artifact, load_artifact
from training.cli_common import open_dataset
from training.data.splits import Part, Split
from training.evaluation.full_ranking import Evaluation, evaluate
from training.evaluation.metrics import paired_bootstrap
from training.methods.base import split_of
from training.provenance import require_same_questions

RESULT = ResultFile(__file__, __doc__)


def permute_titles(artifact: Artifact, order: np.ndarray) -> None:
    """Give every item the title of another: its title vector and its title tokens."""
    encoder = artifact.encoder
    size = encoder.items.size
    encoder.items.text_NC[:size] = encoder.items.text_NC[:size][torch.from_numpy(order)]
    titles = encoder.prompts.titles
    if titles is not None:
        pieces = [titles[row] for row in order.tolist()]
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int64)
        encoder.prompts.titles = TitleTokens(offsets, np.concatenate(pieces))


def permute_ids(artifact: Artifact, order: np.ndarray) -> None:
    """Give every item the trained id vector of another."""
    items = artifact.encoder.items
    with torch.no_grad():
        items.ids.weight[: items.size] = items.ids.weight[: items.size][torch.from_numpy(order)].clone()


def answer(artifact: Artifact, split: Split, part: Part) -> Evaluation:
    """Evaluate with the table as it stands now."""
    items = artifact.encoder.items
    items._frozen_ND = None  # the table is computed once for serving; here its inputs have changed
    items.freeze()
    vectors = items.vectors().numpy()
    return evaluate(
        artifact.encoder,
        lambda users_BD: users_BD @ vectors.T,
        FlatIndex.build(vectors),
        split.targets(part),
        split.popularity(),
        seed=0,
    )


def main() -> None:
    """Evaluate as trained, then with titles permuted, then with ids permuted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--ties", default="file")
    parser.add_argument("--part", default="validation", choices=["validation", "test"])
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    dataset = open_dataset(options.data, ties=options.ties, seed=0, strict=False, console=console)
    results: dict[str, Any] = {"artifact": options.artifact.name, "data": dataset.name, "part": options.part}
    order = np.random.default_rng(0).permutation(dataset.n_items)
    whole: Evaluation | None = None
    catalog = Catalog.read(options.artifact / "catalog.parquet")
    require_same_questions(options.artifact, read_manifest(options.artifact), catalog, dataset, options.part)
    for name, change in (("as trained", None), ("titles permuted", permute_titles), ("ids permuted", permute_ids)):
        artifact = load_artifact(options.artifact)
        if change is not None:
            change(artifact, order)
        found = answer(artifact, split_of(dataset, artifact.manifest.split), options.part)
        results[name] = {metric: round(found.metrics[metric], 4) for metric in ("recall@10", "ndcg@10")}
        if whole is None:
            whole = found
        else:
            against = paired_bootstrap(found.ranks_T, whole.ranks_T, seed=0)["ndcg@10"]
            results[name]["difference"] = [round(x, 4) for x in (against.difference, against.low, against.high)]
        console.print(f"{name}: {results[name]}")
    rows = [{"variant": name, **found} for name, found in results.items() if isinstance(found, dict)]
    RESULT.publish(results, options.result, rows)


if __name__ == "__main__":
    main()
