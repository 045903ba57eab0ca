"""Evaluates artifacts and floors on one split and puts them into one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from index import Catalog, ItemIndex
from index.command_line.one_writer import one_writer
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.manifest import ArtifactError, Manifest, open_files, read_manifest
from modeling.artifact.verified import Files
from modeling.methods import load, method_of
from training.data.dataset import Dataset
from training.data.report import DataError
from training.data.splits import Part, Split, Targets
from training.evaluation.baselines import FLOORS, measure_baseline
from training.evaluation.full_ranking import Evaluation, evaluate
from training.evaluation.ledger import append_entry
from training.evaluation.metrics import Metrics, paired_bootstrap
from training.evaluation.teachers.export import ask_teacher
from training.evaluation.teachers.lists import Teacher
from training.methods.base import split_of
from training.methods.next_token import evaluate_generator
from training.provenance import require_same_data, require_same_questions, require_same_split
from training.recipe import training_method
from training.served_index import served_index
from training.updating.ancestor import Ancestor, known_rows
from training.updating.parent import ancestors_of, rows_in

LARGEST_INDEX = 256 << 30  # bytes

OtherFigures = Callable[[Split, Targets, int], dict[str, Any]]


def evaluate_artifact(
    folder: Path,
    dataset: Dataset,
    part: str,
    *,
    seed: int,
    ledger: bool,
    console: Console,
    ledger_file: Path | None = None,
    ancestors: Collection[str] = (),
) -> tuple[dict[str, Any], Evaluation]:
    """One artifact on one part of its own split; a row for tables and the answers behind it.

    ``ancestors``: see `open_artifact`.

    Raises:
        ArtifactError: the artifact cannot be loaded, or its catalog is not that of ``dataset``.
    """
    opened = open_artifact(folder, dataset, part, ancestors)
    manifest, split, targets = opened.manifest, opened.split, opened.targets
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"{folder.name}: {len(targets)} users", total=len(targets))
        result = opened.answer(targets, split.popularity(), seed=seed, progress=lambda n: bar.advance(task, n))
    row = {
        "method": folder.name,
        "recipe": manifest.recipe,
        "version": manifest.version,
        "fitted_on": manifest.fitted_on,
        "epochs": manifest.training.get("epochs"),
        "seconds": manifest.training.get("seconds"),
        **result.metrics.to_dict(),
        "served_index": result.index_metrics,
    }
    with console.status(f"{folder.name}: other task families"):
        row |= opened.figures(split, targets, seed)
    if ledger and part == "test":
        append_entry(
            config=manifest.recipe_data,
            seed=int(manifest.training.get("seed", 0)),
            data=dataset.name,
            data_sha256=dataset.sha256,
            split=split.name,
            part=part,
            result=row,
            path=ledger_file,
        )
    return row, result


@dataclass(frozen=True)
class Opened:
    """A loaded artifact and the questions it is asked.

    Attributes:
        model: a `modeling.methods.base.VectorMethod` or `ListMethod`.
        on_list: which of them: whether it returns lists rather than vectors that an index is searched with.
        answer: gives an `Evaluation` for targets and the popularity of items.
        figures: gives what the method's kind measures beside it.
        rows: turns a history of the data set's rows into one of the artifact's own.
        index: that is served; None: it returns lists, or is of earlier data.
    """

    manifest: Manifest
    split: Split
    targets: Targets
    model: Any
    on_list: bool
    answer: Callable[..., Evaluation]
    figures: OtherFigures
    rows: Callable[[Sequence[int]], list[int]] = list
    index: ItemIndex | None = None


def open_artifact(folder: Path, dataset: Dataset, part: str, ancestors: Collection[str] = ()) -> Opened:
    """Load an artifact for questions of its own split.

    Args:
        folder: of the artifact.
        dataset: what it is asked.
        part: ``test`` or ``validation``.
        ancestors: versions of artifacts that one of this data was updated from; these may be of its earlier data.

    Raises:
        ArtifactError: it cannot be loaded, its catalog is not that of ``dataset``, or it has seen the answers.
    """
    files, manifest = open_files(folder)
    split = split_of(dataset, manifest.split)
    catalog = Catalog.parse(files.read("catalog.parquet"), folder / "catalog.parquet", manifest.catalog_size)
    earlier = manifest.version in ancestors and manifest.data_sha256 != dataset.sha256
    require_same_questions(folder, manifest, catalog, dataset, part, ancestor=earlier)
    on_list = method_of(manifest, files.name)[0].shape == "list"
    device = "cuda" if on_list and torch.cuda.is_available() else "cpu"
    loaded = load(files, catalog.popular(), device=device)
    if earlier:
        return _ancestor(
            manifest, split, split.targets(part_of(part)), loaded.model, rows_in(catalog, dataset.item_ids)
        )
    index: ItemIndex | None = None
    if on_list:
        answer: Callable[..., Evaluation] = partial(evaluate_generator, loaded.model)
    else:
        index = served_index(files, loaded)
        answer = partial(evaluate, loaded.model.encoder, loaded.model.all_scores, index)
    figures = partial(training_method(manifest.method.kind).other_figures, loaded)
    return Opened(manifest, split, split.targets(part_of(part)), loaded.model, on_list, answer, figures, index=index)


def _ancestor(manifest: Manifest, split: Split, targets: Targets, loaded: Any, rows_N: NDArray[np.int64]) -> Opened:
    """An artifact of earlier data, whose row of each item is in ``rows_N``."""
    model = Ancestor(loaded, rows_N)
    answer = partial(evaluate, model.encoder, model.all_scores, model.index())
    return Opened(manifest, split, targets, model, False, answer, _no_figures, partial(known_rows, rows_N=rows_N))


def _no_figures(split: Split, targets: Targets, seed: int) -> dict[str, Any]:
    return {}


def compare_artifacts(
    folders: Sequence[Path],
    dataset: Dataset,
    part: str,
    *,
    seed: int,
    ledger: bool,
    console: Console,
    ledger_file: Path | None = None,
) -> tuple[list[dict[str, Any]], dict[str, Metrics]]:
    """Floors first, then each artifact with the paired interval of its NDCG@10 against the first one.

    Returns rows for programs, and the metrics by method for a table.
    """
    manifests = [read_manifest(folder) for folder in folders]
    ancestors = ancestors_of(manifests, dataset.sha256)
    names = sorted({manifest.split for manifest in manifests})
    if len(names) > 1:
        raise ArtifactError(
            f"these artifacts were trained on different splits ({', '.join(names)}): no common questions"
        )
    split = split_of(dataset, names[0])
    rows: list[dict[str, Any]] = []
    table: dict[str, Metrics] = {}
    for name in FLOORS:
        with console.status(f"floor {name}"):
            floor = measure_baseline(name, split, part_of(part), seed=seed)
        rows.append({"method": name, **floor.metrics.to_dict()})
        table[name] = floor.metrics
    first: NDArray[np.int64] | None = None
    for folder in folders:
        row, result = evaluate_artifact(
            folder, dataset, part, seed=seed, ledger=ledger, console=console, ledger_file=ledger_file,
            ancestors=ancestors,
        )  # fmt: skip
        if sum(other.resolve().name == folder.resolve().name for other in folders) > 1:
            row["method"] = str(folder)
        if first is None:
            first = result.ranks_T
        else:
            against = paired_bootstrap(result.ranks_T, first, seed=seed)["ndcg@10"]
            row["ndcg@10_against_first"] = {
                "difference": round(against.difference, 6),
                "low": round(against.low, 6),
                "high": round(against.high, 6),
            }
        rows.append(row)
        table[row["method"]] = result.metrics
    return rows, table


def differences(rows: Sequence[dict[str, Any]]) -> dict[str, str] | None:
    """By method, the paired difference of NDCG@10 to the first artifact with its interval; None without a second."""
    found = {row["method"]: row["ndcg@10_against_first"] for row in rows if "ndcg@10_against_first" in row}
    return {
        name: f"{each['difference']:+.4f} [{each['low']:+.4f}, {each['high']:+.4f}]" for name, each in found.items()
    } or None


def export_teacher(
    folder: Path,
    dataset: Dataset,
    out: Path,
    *,
    top: int,
    newest: int | None,
    console: Console,
    candidates: Path | None = None,
    shared: bool = False,
) -> Teacher:
    """Write the lists of an artifact for the training part of its split, to a new or empty folder ``out``; see
    `training.evaluation.teachers.export.ask_teacher`.

    Raises:
        ArtifactError: it, or the artifact of ``candidates``, was trained on other data, in another order, on another
            split, or on what is asked for on validation.
        DataError: more items of a list are wanted than there are items, or the artifact cannot score ``candidates``.
        BeingWrittenError: another process writes ``out``.
    """
    files, manifest = open_files(folder)
    split = split_of(dataset, manifest.split)
    catalog = _checked_catalog(folder, files, manifest, dataset)
    finder = None
    if candidates is not None:
        finder, found_by = open_files(candidates)
        _checked_catalog(candidates, finder, found_by, dataset)
        require_same_split(f"artifact {candidates.name}", found_by, split.name)
    if top > dataset.n_items:
        raise DataError(f"lists of {top} items are wanted, and {dataset.name} has {dataset.n_items} items")
    with one_writer(out):
        teacher = ask_teacher(
            files, split, catalog.popular(), top=top, newest=newest, console=console, candidates=finder, shared=shared
        )
        with replaced_folder(out, kind="new") as work:
            teacher.write(work)
    return teacher


def _checked_catalog(folder: Path, files: Files, manifest: Manifest, dataset: Dataset) -> Catalog:
    """The catalog of an artifact that has seen nothing but the training part of ``dataset``; raises `ArtifactError`."""
    catalog = Catalog.parse(files.read("catalog.parquet"), folder / "catalog.parquet", manifest.catalog_size)
    require_same_data(f"artifact {folder.name}", manifest, dataset)
    require_same_questions(folder, manifest, catalog, dataset, "validation")
    return catalog


def write_top(path: Path, answers: Evaluation, dataset: Dataset) -> None:
    """One line a user: history, target and the ids the index returned, best first."""
    targets = answers.targets
    with path.open("w", encoding="utf-8") as file:
        for question, rows_K in enumerate(answers.top_rows_TK):
            line = {
                "user_id": dataset.user_ids[int(targets.users_T[question])],
                "history": [dataset.item_ids[row] for row in targets.history(question)],
                "target": dataset.item_ids[int(targets.rows_T[question])],
                "top": [dataset.item_ids[row] for row in rows_K if row >= 0],
            }
            file.write(json.dumps(line) + "\n")


def part_of(name: str) -> Part:
    """The part of a split called ``name``; raises `DataError`."""
    if name == "test":
        return "test"
    if name == "validation":
        return "validation"
    raise DataError(f"split part {name!r} not found; parts are test and validation")
