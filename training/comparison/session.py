"""A comparison from beginning to end; started again, it goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from index.command_line.one_writer import one_writer
from modeling.artifact.manifest import read_manifest
from modeling.artifact.targets import COMPARISON
from training.comparison.entrants import Entrant, require_same_dataset, train_missing
from training.comparison.measure import How, Run, baseline_runs, measured
from training.comparison.pages import write_report
from training.comparison.report import Section, report_of
from training.comparison.stages import Stages, measured_stages
from training.data.dataset import Dataset
from training.data.report import DataError
from training.methods.base import split_of

MEASURED = "measured"


@dataclass(frozen=True)
class Training:
    """Settings for training missing artifacts: minutes for each (None: no limit), and the precision."""

    budget: float | None = None
    precision: str = "fp32"


def compare(
    entrants: Sequence[Entrant],
    dataset: Dataset,
    out: Path,
    *,
    how: How,
    training: Training,
    console: Console,
    stages: Sequence[Stages] = (),
) -> dict[str, Any]:
    """Train what is missing, measure every entrant, and write the report.

    Args:
        entrants: artifacts and recipes.
        dataset: what they are asked.
        out: gets ``artifacts/``, ``measured/`` and ``report.json``, ``.md`` and ``.html``.
        how: it is measured.
        training: of what is missing.
        console: for progress.
        stages: pairs of artifacts that are measured together.

    Raises:
        DataError: ``out`` is about other data, an artifact was trained on other data, or one that should rank does not.
        RecipeError: a recipe cannot be trained on the data.
        ArtifactError: an artifact cannot be asked what the others are asked.
        BeingWrittenError: another comparison writes the same folder.
    """
    with one_writer(out):
        return _compare(entrants, dataset, out, how, training, console, stages)


def _compare(
    entrants: Sequence[Entrant],
    dataset: Dataset,
    out: Path,
    how: How,
    training: Training,
    console: Console,
    stages: Sequence[Stages],
) -> dict[str, Any]:
    how = replace(how, ancestors=require_same_dataset(entrants, dataset))
    _claim(out, dataset)
    train_missing(
        entrants, dataset, seed=how.seed, budget=training.budget, precision=training.precision, console=console
    )
    composed = []  # first, since not every artifact can be one of two stages
    for number, pair in enumerate(stages, 1):
        console.print(f"measuring two stages, {number} of {len(stages)}: {pair.name}", markup=False, highlight=False)
        composed.append(measured_stages(pair, dataset, how, out / MEASURED, console))
    by_split: dict[str, list[Run]] = {}
    for number, each in enumerate(entrants, 1):
        console.print(f"measuring {number} of {len(entrants)}: {each.name}", markup=False, highlight=False)
        by_split.setdefault(read_manifest(each.folder).split, [])
        found = measured(each, dataset, how, out / MEASURED, console)
        by_split[found.split].append(found)
    for together in composed:
        by_split[together.split].append(together)
    sections = []
    for name, runs in by_split.items():
        split = split_of(dataset, name)
        sections.append(Section(split, runs, baseline_runs(split, how, console)))
    report = report_of(dataset, sections, how)
    for path in write_report(report, out):
        console.print(f"wrote {path}", markup=False, highlight=False)
    return report


def _claim(out: Path, dataset: Dataset) -> None:
    """Say in the folder which data it is about; raises `DataError` where it is about other data."""
    path, facts = out / COMPARISON, {"comparison_of": dataset.name, "data_sha256": dataset.sha256, "ties": dataset.ties}
    if not path.is_file():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found != facts:
        raise DataError(
            f"{out} holds a comparison on {found.get('comparison_of')!r} (ties {found.get('ties')!r}), and this one is "
            f"on {dataset.name!r} (ties {dataset.ties!r}): name another --out"
        )
