"""Trains the candidates of a data set and keeps the one with the best NDCG@10 on validation."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from index.command_line.one_writer import one_writer
from modeling.artifact.atomic import replaced_folder
from modeling.artifact.manifest import MANIFEST, Manifest, read_manifest, seal
from modeling.backbone.loading import BackboneError
from training.choosing.candidates import Candidate, shares_of
from training.data.dataset import Dataset
from training.data.report import DataError
from training.loop.budget import OutOfTime
from training.methods.base import split_of
from training.recipe import RecipeError
from training.run import RunOptions, run

METRIC = "validation_ndcg@10"
FEW = 100
"""Targets of validation below which the best figure may be one by chance."""


@dataclass(frozen=True)
class Tried:
    """A candidate and its outcome.

    Attributes:
        name: of the candidate.
        figure: NDCG@10 on validation; None where it gave no model.
        reason: why not, or the rule by which it was tried.
    """

    name: str
    figure: float | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """The chosen artifact's manifest, and everything that was tried."""

    manifest: Manifest
    tried: Sequence[Tried]

    @property
    def chosen(self) -> str:
        """Name of the chosen candidate."""
        return str(self.manifest.training["choice"]["chosen"])


def choose(
    candidates: Sequence[Candidate], dataset: Dataset, options: RunOptions, minutes: float, console: Console
) -> Choice:
    """Train every candidate, and write the best to ``options.out``. Started again, it goes on where it was ended.

    A candidate that an earlier run finished is kept, unless a time budget other than the present one cut it.

    Args:
        candidates: at least one; of equal figures the earlier one is chosen.
        dataset: only its training and validation parts are looked at.
        options: of all trainings; ``out`` is where the chosen artifact goes.
        minutes: for all trainings together.
        console: for progress.

    Raises:
        RecipeError: no candidate gave a model; several processes were started.
        BeingWrittenError: another process writes ``options.out``.
        DataError: the split leaves a part without targets.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(f"a choice is made in one process: started in {processes}; allowed is 1")
    targets = len(split_of(dataset, options.split).validation)
    if targets < FEW:
        console.print(f"note: validation has {targets} targets; the best of so few may be best by chance")
    folder = _folder(dataset, options)
    with one_writer(options.out):
        tried = _all_tried(candidates, dataset, folder, options, shares_of(candidates, minutes), console)
        able = [each for each in tried if each.figure is not None]
        if not able:
            reasons = "; ".join(f"{each.name}: {each.reason}" for each in tried)
            raise RecipeError(f"no candidate gave a model: {reasons}")
        best = max(able, key=_figure)
        record = {"chosen": best.name, "targets": targets, "tried": _as_data(tried)}
        (place,) = [_place(folder, each) for each in candidates if each.name == best.name]
        manifest = _taken_over(place, options.out, record)
        if not options.keep_work:
            shutil.rmtree(folder, ignore_errors=True)
    return Choice(manifest, tried)


def _figure(tried: Tried) -> float:
    return tried.figure or 0.0


def _all_tried(
    candidates: Sequence[Candidate],
    dataset: Dataset,
    folder: Path,
    options: RunOptions,
    budgets: Mapping[str, float | None],
    console: Console,
) -> list[Tried]:
    tried: list[Tried] = []
    for number, each in enumerate(candidates, 1):
        budget = budgets[each.name]
        limit = "" if budget is None else f", at most {budget:.3g} min"
        console.print(f"candidate {number} of {len(candidates)}: {each.name}{limit} ({each.why})", highlight=False)
        own = replace(options, out=_place(folder, each), time_budget=budget)
        tried.append(_tried(each, dataset, own, console))
    return tried


def _folder(dataset: Dataset, options: RunOptions) -> Path:
    """Folder of the candidates' artifacts, named by all that affects each of them but its recipe and the time."""
    decides = [dataset.sha256, dataset.ties, options.seed, options.precision, options.split, options.refit]
    return options.out.absolute().parent / f".{options.out.name}.candidates-{_digest(decides)}"


def _place(folder: Path, candidate: Candidate) -> Path:
    """Folder of a candidate's artifact, so that an equal recipe goes on, whatever else is tried."""
    return folder / f"{candidate.name}-{_digest(candidate.recipe.model_dump(mode='json'))}"


def _digest(decides: Any) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:10]


def _tried(candidate: Candidate, dataset: Dataset, options: RunOptions, console: Console) -> Tried:
    try:
        manifest = _earlier(options) or run(candidate.recipe, dataset, options, console).manifest
    except (RecipeError, OutOfTime, DataError, BackboneError, FloatingPointError) as error:
        reason = str(error)
        if isinstance(error, OutOfTime):
            reason += f", of which this candidate has {candidate.share:.0%}"
        console.print(f"{candidate.name} gives no model: {reason}", markup=False, highlight=False)
        return Tried(candidate.name, None, reason)
    figure = manifest.metrics[METRIC]
    console.print(f"{candidate.name}: validation NDCG@10 {figure:.4f}", markup=False, highlight=False)
    return Tried(candidate.name, figure, candidate.why)


def _earlier(options: RunOptions) -> Manifest | None:
    """The candidate as an earlier run finished it; None where there is none, or another time budget cut it."""
    if not (options.out / MANIFEST).is_file():
        return None
    manifest = read_manifest(options.out)
    made = manifest.training
    cut = made["stopped_by"] == "time budget" and made["time_budget_minutes"] != options.time_budget
    return None if cut else manifest


def _as_data(tried: Sequence[Tried]) -> list[dict[str, Any]]:
    return [{"name": each.name, METRIC: each.figure, "reason": each.reason} for each in tried]


def _taken_over(source: Path, out: Path, choice: dict[str, Any]) -> Manifest:
    """Copy the chosen artifact to where it was asked for; its manifest says what else was tried."""
    manifest = read_manifest(source)
    named = manifest.model_copy(update={"name": out.name, "training": {**manifest.training, "choice": choice}})
    with replaced_folder(out) as work:
        shutil.copytree(source, work, dirs_exist_ok=True)
        (work / MANIFEST).unlink()
        return seal(work, named)
