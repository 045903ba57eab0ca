"""Ablation of the backbone: the recipe as it is, and controls that have less of it, each trained by the same command.

Rows: the newest items alone without a network, a small transformer with the same item vectors, a language model with
random weights, frozen, and with LoRA; each with and without the newest items in the user's vector. All are ranked on
*validation*, with histories as they are and in random order; differences are paired over users. A row is stored when it
ends, and a training that was cut short goes on from its last checkpoint: start the same command again.

    python -m benchmarks.quality.backbone --data DIR [DIR …] --minutes 20 --seeds 0 1

The last line is one JSON object with the rows of all data sets.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file

from benchmarks.lib.results import ResultFile
from modeling.artifact.tensor_files import save_arrays
from modeling.methods.dense import load_artifact
from training.cli_common import open_dataset
from training.data.dataset import Dataset
from training.data.splits import Targets, leave_one_out
from training.evaluation.full_ranking import encode_users, rank_all
from training.evaluation.metrics import paired_bootstrap, question_values
from training.loop.budget import OutOfTime
from training.recipes import Recipe, get_recipe
from training.run import RunOptions, run

REFERENCE = "small transformer"
NO_BLOCK = ("projector.residual=false", "projector.recent=1")
SMALL = (
    "items.tower=both", "items.text_source=minilm", "history.form=compressed", "history.id_dropout=0.05",
    "projector.residual=true", "projector.recent=10", "optimizer.average_epochs=1",
)  # fmt: skip
NO_NETWORK = (*(s for s in SMALL if "id_dropout" not in s), "projector.kind=none")

RESULT = ResultFile(__file__, __doc__)


@dataclass(frozen=True)
class Row:
    """One model of the table: recipe, backbone (a name or a folder; None: the recipe's usual one) and settings."""

    name: str
    recipe: str
    settings: tuple[str, ...] = ()
    backbone: str | None = None

    def build(self, extra: list[str]) -> Recipe:
        """The recipe, with settings that all rows are given."""
        return get_recipe(self.recipe, [*self.settings, *extra], backbone=self.backbone)


def rows_of(folders: dict[str, str]) -> list[Row]:
    """All rows, those of language models for ``minilm`` and for other backbones by name and source."""
    found = [
        Row("newest items alone", "sasrec", NO_NETWORK),
        Row(REFERENCE, "sasrec", SMALL),
        Row(f"{REFERENCE}, without newest items", "sasrec", (*SMALL[:4], *SMALL[6:], *NO_BLOCK)),
    ]
    for name, source in {"minilm": "minilm", **folders}.items():
        kinds = [("frozen", ("adapter.kind=none",)), ("LoRA", ())]
        if name == "minilm":
            kinds.insert(0, ("random weights, LoRA", ("backbone.random_weights=true",)))
        for kind, settings in kinds:
            found.append(Row(f"{name}, {kind}", "anyo", settings, source))
            found.append(Row(f"{name}, {kind}, without newest items", "anyo", (*settings, *NO_BLOCK), source))
    return found


def shuffled(targets: Targets, seed: int) -> list[NDArray[np.int64]]:
    """Histories of all questions, each in random order."""
    rng = np.random.default_rng([seed, 17])
    return [rng.permutation(history.astype(np.int64)) for history in targets.histories()]


def measure(folder: Path, targets: Targets, seed: int) -> dict[str, NDArray[np.int64]]:
    """Ranks of the targets, with histories as they are and in random order."""
    artifact = load_artifact(folder)
    seen = [history.astype(np.int64) for history in targets.histories()]
    ranks = {}
    for name, histories in (("as it is", seen), ("shuffled", shuffled(targets, seed))):
        users = encode_users(artifact.encoder, histories)
        ranks[name] = rank_all(users, artifact.item_vectors_ND, targets.rows_T, seen, seed=seed)
    return ranks


def measured(row: Row, dataset: Dataset, seed: int, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """A row, from its file where it has ended before; a row that has no artifact says why."""
    record: dict[str, Any] = {
        "data": dataset.name, "variant": row.name, "settings": options.set, "minutes": options.minutes, "seed": seed
    }  # fmt: skip
    place = place_of(record, options.state)
    file = beside(place, ".json")
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    console.print(f"[bold]{dataset.name}, seed {seed}: {row.name}[/]")
    if not (place / "manifest.json").exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            run(row.build(options.set), dataset, RunOptions(out=place, seed=seed, time_budget=options.minutes), console)
        except OutOfTime as error:
            return {**record, "refused": str(error)}
    targets = leave_one_out(dataset).validation
    ranks = measure(place, targets, seed)
    save_arrays(ranks, beside(place, ".safetensors"))
    training = load_artifact(place).manifest.training
    for name, ranks_T in ranks.items():
        values = question_values(ranks_T, cuts=(10,))
        key = "" if name == "as it is" else "_shuffled"
        record |= {f"{metric}{key}": float(values[f"{metric}@10"].mean()) for metric in ("recall", "ndcg")}
    record |= {name: training[name] for name in ("epochs", "best_epoch", "seconds", "stopped_by")}
    file.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    console.print({name: round(value, 4) for name, value in record.items() if isinstance(value, float)})
    return record


def place_of(record: dict[str, Any], state: Path) -> Path:
    """Path of a row's artifact; files with its ranks and metrics have the same path with another ending."""
    slug = re.sub(r"[^\w.=]+", "-", " ".join([record["variant"], *record["settings"]]))
    return state / str(record["data"]) / f"{slug}-{record['seed']}-{record['minutes']:g}min"


def beside(place: Path, ending: str) -> Path:
    """A file beside an artifact."""
    return place.parent / (place.name + ending)


def with_differences(records: list[dict[str, Any]], state: Path) -> list[dict[str, Any]]:
    """Rows with the paired difference of NDCG@10 from the small transformer of the same data and seed."""

    def ranks(record: dict[str, Any]) -> dict[str, NDArray[np.int64]]:
        return load_file(beside(place_of(record, state), ".safetensors"))

    found = []
    for record in records:
        same = [other for other in records if (other["data"], other["seed"]) == (record["data"], record["seed"])]
        base = [other for other in same if other["variant"] == REFERENCE and "refused" not in other]
        if "refused" in record or not base:
            found.append(record)
            continue
        own, other = ranks(record), ranks(base[0])
        pairs = {"difference": (own["as it is"], other["as it is"]), "of_order": (own["as it is"], own["shuffled"])}
        for name, (first, second) in pairs.items():
            each = paired_bootstrap(first, second, seed=0)["ndcg@10"]
            record = {**record, name: {"value": each.difference, "low": each.low, "high": each.high}}
        found.append(record)
    return found


def main() -> None:
    """Train and measure what is missing, then print all rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="data sets, names or folders")
    parser.add_argument("--minutes", type=float, default=20.0, help="training time of a row")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--ties", default="file")
    parser.add_argument("--only", default="", help="regular expression that names of rows must contain")
    parser.add_argument(
        "--backbone", nargs="*", default=[], metavar="NAME=SOURCE", help="further backbones, names or folders"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="slot.field=value", help="settings of all rows")
    parser.add_argument("--state", type=Path, default=Path("artifacts/.backbone-table"), help="what has ended")
    RESULT.add_option(parser)
    options = parser.parse_args()
    console = Console(stderr=True)
    torch.set_num_threads(1)
    rows = [
        row
        for row in rows_of(dict(each.split("=", 1) for each in options.backbone))
        if re.search(options.only, row.name)
    ]
    for row in rows:
        row.build(options.set)  # a setting that a row refuses is refused before anything is trained
    records = []
    for seed in options.seeds:
        for data in options.data:
            dataset = open_dataset(data, ties=options.ties, seed=seed, strict=False, console=console)
            records += [measured(row, dataset, seed, options, console) for row in rows]
    RESULT.publish(with_differences(records, options.state), options.result)


if __name__ == "__main__":
    main()
