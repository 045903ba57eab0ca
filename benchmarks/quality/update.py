"""Accuracy of an update relative to a full training, with the newest interactions withheld from the parent.

For each share of interactions, newest first: a parent is trained on the data without them (and without items that
nobody had chosen before), updated with the whole data, and compared with a full training on it, on the same users. A
row is kept when it ends, and a training that was cut short goes on from its last checkpoint: start the command again.

    python -m benchmarks.quality.update --data DIR --recipe sasrec --result quality/update-sasrec

Figures are NDCG@10 of validation; a parent ranks items that it does not know behind all others. Ratios are to the full
training, and the cost of the parent is not counted.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.lib.results import ResultFile
from modeling.artifact.manifest import read_manifest
from training.cli_common import open_dataset
from training.compare import open_artifact
from training.data.dataset import Dataset, read_dataset
from training.evaluation.metrics import paired_bootstrap, question_values
from training.recipe import Recipe
from training.recipes import get_recipe
from training.run import RunOptions, run
from training.updating.parent import SHARE, ancestors_of, recipe_of_update

RESULT = ResultFile(__file__, __doc__)


def without_newest(dataset: Dataset, share: float, folder: Path) -> Path:
    """Write the data as it was before the newest ``share`` of its interactions, and before items that nobody had chosen
    until then; items that nobody ever chose stay. Returns ``folder``."""
    count = round((1 - share) * dataset.n_interactions)
    kept = np.sort(np.argsort(dataset.timestamps, kind="stable")[:count])
    there_N = np.ones(dataset.n_items, bool)
    there_N[dataset.rows] = False
    there_N[dataset.rows[kept]] = True
    users = np.repeat(np.array(dataset.user_ids, object), dataset.lengths_U)
    table = pl.DataFrame(
        {
            "user_id": users[kept].tolist(),
            "item_id": [dataset.item_ids[row] for row in dataset.rows[kept].tolist()],
            "timestamp": dataset.timestamps[kept],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    dataset.items.filter(pl.Series(there_N)).write_ndjson(folder / "items.jsonl")
    (folder / "interactions.csv.gz").write_bytes(gzip.compress(table.write_csv().encode(), mtime=0))
    return folder


def trained(recipe: Recipe, dataset: Dataset, out: Path, console: Console, **options: Any) -> Path:
    """The artifact's folder; trained unless it is there."""
    if not (out / "manifest.json").exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        console.print(f"training {out.name}", markup=False)
        run(recipe, dataset, RunOptions(out=out, **options), console)
    return out


def ranks(folders: dict[str, Path], dataset: Dataset) -> dict[str, NDArray[np.int64]]:
    """Ranks of the validation targets, by artifact."""
    ancestors = ancestors_of([read_manifest(folder) for folder in folders.values()], dataset.sha256)
    found = {}
    for name, folder in folders.items():
        opened = open_artifact(folder, dataset, "validation", ancestors)
        found[name] = opened.answer(opened.targets, opened.split.popularity(), seed=0).ranks_T
    return found


def measured(dataset: Dataset, share: float, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """One row, from its file where it has ended before."""
    place = options.state / f"{dataset.name}-{options.recipe}-{options.seed}"
    file = place / f"{share:g}-{options.share:g}.json"
    if file.exists():
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return kept
    recipe = get_recipe(options.recipe, options.set, backbone=options.backbone)
    folders = {"full": trained(recipe, dataset, place / "full", console, seed=options.seed)}
    old = read_dataset(without_newest(dataset, share, place / f"without-{share:g}"))
    folders["parent"] = trained(recipe, old, place / f"parent-{share:g}", console, seed=options.seed)
    shorter = recipe_of_update(read_manifest(folders["parent"]), options.share, [])
    out = place / f"update-{share:g}-{options.share:g}"
    folders["update"] = trained(
        shorter, dataset, out, console, seed=options.seed, parent=folders["parent"], split="leave-one-out"
    )
    found = ranks(folders, dataset)
    ndcg = {name: float(question_values(ranks_T, cuts=(10,))["ndcg@10"].mean()) for name, ranks_T in found.items()}
    training = {name: read_manifest(folder).training for name, folder in folders.items()}
    against = paired_bootstrap(found["update"], found["full"], seed=0)["ndcg@10"]
    row = {
        "data": dataset.name, "recipe": options.recipe, "withheld": share,
        "new_items": training["update"]["update"]["new_items"], **{name: round(ndcg[name], 6) for name in ndcg},
        "difference": {"value": against.difference, "low": against.low, "high": against.high},
        "quality": round(ndcg["update"] / ndcg["full"], 4), "parent_quality": round(ndcg["parent"] / ndcg["full"], 4),
        "cost": round(training["update"]["seconds"] / training["full"]["seconds"], 4),
        "steps": round(training["update"]["steps"] / training["full"]["steps"], 4),
    }  # fmt: skip
    file.write_text(json.dumps(row), encoding="utf-8")
    return row


def main() -> None:
    """Train and measure what is missing, then write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="data sets with times, names or folders")
    parser.add_argument("--recipe", default="sasrec", help="of a dense method")
    parser.add_argument("--backbone", default=None)
    parser.add_argument("--set", nargs="*", default=[], metavar="slot.field=value", help="settings of all trainings")
    parser.add_argument("--withhold", nargs="+", type=float, default=[0.01, 0.03, 0.1], help="shares of interactions")
    parser.add_argument("--share", type=float, default=SHARE, help="of the epochs of the parent's full training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("artifacts/.updates"), help="artifacts and what has ended")
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for data in options.data:
        dataset = open_dataset(data, ties="file", seed=options.seed, strict=False, console=console)
        if dataset.order_only:
            parser.error(f"{dataset.name} has positions instead of times: none of its interactions is the newest")
        for share in options.withhold:
            rows.append(measured(dataset, share, options, console))
            print(json.dumps(rows[-1]), flush=True)
    RESULT.publish(rows, options.result)


if __name__ == "__main__":
    main()
