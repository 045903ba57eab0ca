"""Trains the candidates of a data set and keeps the one with the best NDCG@10 on validation."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from modeling.artifact.atomic import replaced_folder
from modeling.artifact.manifest import MANIFEST, Manifest, read_manifest, seal
from training.choosing.candidates import Candidate, shares_of
from training.data.dataset import Dataset
from training.loop.budget import OutOfTime
from training.recipe import RecipeError
from training.run import RunOptions, run

METRIC = "validation_ndcg@10"


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

    Args:
        candidates: at least one; of equal figures the earlier one is chosen.
        dataset: only its training and validation parts are looked at.
        options: of all trainings; ``out`` is where the chosen artifact goes.
        minutes: for all trainings together.
        console: for progress.

    Raises:
        RecipeError: no candidate gave a model.
    """
    folder = _folder(candidates, dataset, options, minutes)
    budgets = shares_of(candidates, minutes)
    tried: list[Tried] = []
    for number, each in enumerate(candidates, 1):
        budget = budgets[each.name]
        limit = "" if budget is None else f", at most {budget:.3g} min"
        console.print(f"candidate {number} of {len(candidates)}: {each.name}{limit} ({each.why})", highlight=False)
        own = replace(options, out=folder / each.name, time_budget=budget)
        tried.append(_tried(each, dataset, own, console))
    able = [each for each in tried if each.figure is not None]
    if not able:
        raise RecipeError("no candidate gave a model: " + "; ".join(f"{each.name}: {each.reason}" for each in tried))
    best = max(able, key=lambda each: each.figure or 0.0)
    manifest = _taken_over(folder / best.name, options.out, {"chosen": best.name, "tried": _as_data(tried)})
    if not options.keep_work:
        shutil.rmtree(folder, ignore_errors=True)
    return Choice(manifest, tried)


def _folder(candidates: Sequence[Candidate], dataset: Dataset, options: RunOptions, minutes: float) -> Path:
    """Folder of the candidates' artifacts, named by all that affects them, so that only an equal choice goes on."""
    decides = [
        [[each.name, each.recipe.model_dump(mode="json")] for each in candidates],
        [dataset.sha256, dataset.ties, options.seed, options.precision, options.split, options.refit, minutes],
    ]
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return options.out.absolute().parent / f".{options.out.name}.candidates-{digest}"


def _tried(candidate: Candidate, dataset: Dataset, options: RunOptions, console: Console) -> Tried:
    if (options.out / MANIFEST).is_file():  # an earlier run came so far
        return Tried(candidate.name, read_manifest(options.out).metrics[METRIC], candidate.why)
    try:
        manifest = run(candidate.recipe, dataset, options, console).manifest
    except (RecipeError, OutOfTime, FloatingPointError) as error:
        console.print(f"{candidate.name} gives no model: {error}", markup=False, highlight=False)
        return Tried(candidate.name, None, str(error))
    figure = manifest.metrics[METRIC]
    console.print(f"{candidate.name}: validation NDCG@10 {figure:.4f}", markup=False, highlight=False)
    return Tried(candidate.name, figure, candidate.why)


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
