"""Stages of a training run: an ordered list of parts, each of which can be taken up again after a kill.

A stage has a work folder of its own below that of the run, and a file in it once it has ended. A run that is started
again restores what ended stages left, and goes on inside the one that was cut short, as far as it keeps checkpoints.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from modeling.artifact.tensor_files import save_tensors
from modeling.encoder.build import trainable
from training.data.splits import Split
from training.loop.budget import check_time
from training.loop.fit import FitOptions, train_module
from training.loop.module import TrainedModule
from training.loop.trainer import WEIGHTS, load_trained
from training.recipe import Recipe, RecipeError

DONE = "done.json"
"""In the work folder of a stage that has ended: its report."""


class Stage(Protocol):
    """One part of a training run; it changes the model that it was made with.

    Attributes:
        name: of its work folder; unique in a run.
        objective: the loss, in words, for the record of the run.
    """

    name: str
    objective: str

    def run(self, work: Path) -> dict[str, Any]:
        """Train, going on from what ``work`` holds, and leave there what `restore` needs; returns figures for the
        record of the run."""
        ...

    def restore(self, work: Path) -> None:
        """Bring the model to where this stage left it."""
        ...


def run_stages(stages: Sequence[Stage], work: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Run stages in order, those that have ended excepted; the reports of all, by name.

    Args:
        stages: of one run.
        work: the run's work folder, named by everything that decides the result.
        console: says which stage begins.

    Raises:
        RecipeError: two stages have one name.
        OutOfTime: the run's budget ended before a stage began.
    """
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise RecipeError(f"stages of a run need names of their own: {', '.join(names)}")
    reports = {}
    for number, stage in enumerate(stages, 1):
        folder = work / stage.name
        if (found := _report(folder)) is not None:
            stage.restore(folder)
        else:
            check_time(f"starting the stage {stage.name!r}")
            if len(stages) > 1:
                console.print(f"stage {number} of {len(stages)}: {stage.name} ({stage.objective})")
            folder.mkdir(parents=True, exist_ok=True)
            found = {"objective": stage.objective, **stage.run(folder)}
            _write(folder, found)
        reports[stage.name] = found
    return reports


@dataclass
class ModuleStage:
    """Trains a module with the shared training loop; it resumes from the loop's checkpoints.

    Attributes:
        name, objective: as in `Stage`.
        module: holds the model and the loss.
        recipe: its optimizer and history are what the loop reads.
        split: gives the windows.
        options: ``work`` is replaced by the stage's own folder.
        evaluate_now: figures that select the best epoch.
        console: for progress.
    """

    name: str
    objective: str
    module: TrainedModule
    recipe: Recipe
    split: Split
    options: FitOptions
    evaluate_now: Callable[[], dict[str, float]]
    console: Console

    def run(self, work: Path) -> dict[str, Any]:
        """Train to the best epoch, or for ``options.epochs``."""
        options = replace(self.options, work=work)
        trained = train_module(self.recipe, self.split, options, self.module, self.evaluate_now, console=self.console)
        save_tensors(trainable(self.module), work / WEIGHTS)
        names = ("epochs", "best_epoch", "steps", "seconds", "stopped_by")
        return {name: getattr(trained, name) for name in names}

    def restore(self, work: Path) -> None:
        """Load the weights that it ended with."""
        load_trained(self.module, work)


def _report(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / DONE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _write(folder: Path, report: dict[str, Any]) -> None:
    """Write the report in one step: a stage that is killed meanwhile has not ended."""
    part = folder / f"{DONE}.part"
    part.write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    os.replace(part, folder / DONE)
