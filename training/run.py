"""One training run from a recipe's name to an artifact folder; what ``train`` on the command line does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from index.command_line.one_writer import one_writer
from modeling.artifact.manifest import Manifest, read_manifest
from modeling.encoder.build import Sources
from modeling.inference.precision_choice import PrecisionAsked, Settled, settle
from modeling.methods.dense import read_dense
from training.checks import check_learnable
from training.data.dataset import Dataset
from training.data.splits import Split
from training.evaluation.metrics import Metrics
from training.evaluation.teachers.lists import Teacher
from training.loop.budget import Budget, OutOfTime, budget
from training.loop.fit import FitOptions, Precision, Trained
from training.methods.base import Job, TrainingMethod, check_id_model, split_of
from training.provenance import id_model_record, require_all_validation
from training.recipe import Recipe, RecipeError, method_names, training_method
from training.tiny import ensure_tiny
from training.updating.parent import Parent, continued
from training.updating.warm_start import WarmStart

TINY = "tiny"
BACKBONES = ".backbones"
"""Folder beside artifacts of what is made once: ``tiny``, states of frozen layers."""


@dataclass(frozen=True)
class RunOptions:
    """Options of ``train`` other than recipe and data."""

    out: Path
    seed: int = 0
    time_budget: float | None = None
    precision: PrecisionAsked = "fp32"
    precision_forced: bool = False
    split: str = "leave-one-out"
    refit: bool = False
    id_model: Path | None = None
    teacher: Path | None = None
    parent: Path | None = None
    """Artifact that is updated: the training starts from its weights."""
    keep_work: bool = False
    follow: Callable[[int, dict[str, Any]], None] | None = None


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    manifest: Manifest
    validation: Metrics
    fitted: Trained


def run(recipe: Recipe, dataset: Dataset, options: RunOptions, console: Console) -> RunResult:
    """Train ``recipe`` on ``dataset`` and write its artifact to ``options.out``.

    A run that was killed goes on from its last checkpoint when it is started again with the same recipe, data and
    seed; it then ends as it would have without the kill.

    Raises:
        BeingWrittenError: another run writes the same artifact.
    """
    # Of several processes of one run, the first holds the folder.
    with contextlib.nullcontext() if int(os.environ.get("RANK", "0")) else one_writer(options.out):
        return _run(recipe, dataset, options, console)


def _run(recipe: Recipe, dataset: Dataset, options: RunOptions, console: Console) -> RunResult:
    method: type[TrainingMethod[Any]] = training_method(recipe.method.kind)
    method.check_processes(recipe)
    if options.refit and not recipe.optimizer.epochs:
        raise RecipeError("--refit has no effect with optimizer.epochs=0: nothing is trained")
    with budget(options.time_budget) as clock:
        split, start, update = _begun(recipe, dataset, options, method)
        check_learnable(recipe, split)
        precision = _precision(options, console)
        id_rows = _id_rows(recipe, split, options, same_rows=method.same_rows)
        teacher = _teacher(recipe, split, options.teacher)
        work = _work_folder(recipe, dataset, options, precision.taken, teacher, start)
        sources = _sources(recipe, split, options, console, start)
        id_model = options.id_model if recipe.requires else None
        way = method(Job(recipe, split, console, sources, id_model, id_rows, teacher, start))
        fitted, validation = _fitted(way, options, work, precision, clock)
    if int(os.environ.get("RANK", "0")):
        raise SystemExit(0)  # under torchrun the first process writes the artifact
    manifest = way.write(
        options.out,
        fitted_on="train+validation" if options.refit else "train",
        metrics={f"validation_{name}": interval.value for name, interval in validation.accuracy.items()},
        training={**_training_record(recipe, fitted, split, options, precision, teacher), **update, **way.report},
    )
    if not options.keep_work:
        shutil.rmtree(work, ignore_errors=True)
    return RunResult(manifest, validation, fitted)


def _fitted(
    way: TrainingMethod[Any], options: RunOptions, work: Path, precision: Settled, clock: Budget
) -> tuple[Trained, Metrics]:
    """Train and validate; with ``--refit`` then train once more, on train and validation, for the best epochs.

    Raises:
        OutOfTime: the budget ended in the first epoch, or in the refit.
        RecipeError: there was no step.
    """
    fit_options = FitOptions(
        work=work / "train",
        seed=options.seed,
        share=0.5 if options.refit else 1.0,
        precision=cast(Precision, precision.taken),
        cache=options.out.absolute().parent / BACKBONES,
        follow=options.follow,
    )
    fitted = _learned(way.fit(fit_options), way.recipe, options)
    validation = way.validate(options.seed)
    if not options.refit:
        return fitted, validation
    epochs = max(1, round(fitted.best_epoch))
    way.console.print(f"refit on train + validation for {epochs} epochs")
    again = replace(fit_options, work=work / "refit", fitted_on="train+validation", epochs=epochs, share=1.0)
    fitted = way.fit(again)
    if fitted.stopped_by == "time budget":
        clock.check("refitting on train + validation")
    return fitted, validation


def _begun(
    recipe: Recipe, dataset: Dataset, options: RunOptions, method: type[TrainingMethod[Any]]
) -> tuple[Split, WarmStart | None, dict[str, Any]]:
    """The split; where an update begins, and what its manifest says of that.

    Raises:
        RecipeError: the method cannot go on from an artifact.
        ArtifactError, DataError: as `training.updating.parent.continued`.
    """
    split = split_of(dataset, options.split)
    if options.parent is None:
        return split, None, {}
    check_updates(recipe, method, options.parent)
    parent = Parent.open(options.parent)
    split, unasked = continued(parent, split)
    start = WarmStart(parent, parent.rows(dataset.item_ids))
    return split, start, {"update": parent.record_of(recipe, split, unasked)}


def check_updates(recipe: Recipe, method: type[TrainingMethod[Any]], folder: Path) -> None:
    """Refuse a method whose training cannot start from an artifact; raises `RecipeError`."""
    if not method.updates:
        able = [kind for kind in method_names() if training_method(kind).updates]
        raise RecipeError(
            f"artifact {folder.name} is of recipe {recipe.name!r}, method {method.kind!r}, which cannot be updated; "
            f"methods that can: {', '.join(able)}; train it anew with `training train {recipe.name}`"
        )


def _trained_until(split: Split) -> float:
    """Time of the newest interaction that is trained on."""
    data, lengths_U = split.dataset, split.train_lengths_U
    some = lengths_U > 0
    return float(data.timestamps[data.offsets_U1[:-1][some] + lengths_U[some] - 1].max())


def _learned(fitted: Trained, recipe: Recipe, options: RunOptions) -> Trained:
    """Refuse what was cut before the first epoch was over: nothing was compared, and hardly anything learned.

    Raises:
        OutOfTime: so it was.
        RecipeError: there was no step.
    """
    if not recipe.optimizer.epochs:
        return fitted
    if fitted.steps and (fitted.epochs >= 1 or fitted.stopped_by != "time budget"):
        return fitted
    if fitted.stopped_by != "time budget":
        raise RecipeError("nothing was learned: training ended without a step, and nothing was written")
    whole = fitted.seconds / max(fitted.epochs, 1e-9) / 60
    raise OutOfTime(
        f"the time budget of {options.time_budget:g} min ended after {fitted.epochs:.2f} of the first epoch, which "
        f"takes about {whole:.2g} min; nothing was written: give more with --time-budget"
    )


def _sources(recipe: Recipe, split: Split, options: RunOptions, console: Console, start: WarmStart | None) -> Sources:
    """Sources that are made here and kept next to the artifact: ``tiny``, trained or found, and vectors of titles; in
    an update the backbone of the parent."""
    made = options.out.absolute().parent / BACKBONES
    if start is not None:
        return start.sources(Sources(vectors=made, download=True))
    user, text = recipe.backbone.source == TINY, recipe.needs_text_vectors and recipe.text_backbone == TINY
    if not user and not text:
        return Sources(vectors=made, download=True)
    folder = ensure_tiny(
        split.dataset.titles,
        split.dataset.categories,
        split.train_rows(),
        cache=made,
        seed=options.seed,
        console=console,
    )
    return Sources(folder if user else None, folder if text and not user else None, vectors=made, download=True)


def _precision(options: RunOptions, console: Console) -> Settled:
    """Precision of the run; measured and printed where it was not simply fp32.

    Raises:
        RecipeError: several processes would each measure.
        PrecisionError: bf16 was asked for and is slower here.
    """
    import torch

    if options.precision == "int8":
        raise RecipeError("precision 'int8' is not allowed in training; allowed are auto, fp32 and bf16")
    if options.precision == "auto" and (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise RecipeError(
            f"precision 'auto' is measured in one process, and {processes} were started: name fp32 or bf16"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    force_with = "add --force-precision to have it all the same"
    settled = settle(options.precision, device, training=True, forced=options.precision_forced, force_with=force_with)
    if settled.milliseconds:
        console.print(f"precision {settled}", highlight=False)
    return settled


def _work_folder(
    recipe: Recipe,
    dataset: Dataset,
    options: RunOptions,
    precision: str,
    teacher: Teacher | None,
    start: WarmStart | None,
) -> Path:
    """Folder of the checkpoints, named by a hash of all that affects the result, so that only an equal run resumes."""
    decides = [
        recipe.model_dump(mode="json"),
        dataset.sha256,
        dataset.ties,
        options.seed,
        precision,
        options.split,
    ]
    if recipe.requires is not None and options.id_model is not None:
        decides.append(read_dense(options.id_model)[0].version)
    if teacher is not None:
        decides.append(teacher.facts)
    if start is not None:
        decides.append(["update", start.parent.manifest.version])
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return options.out.absolute().parent / f".{options.out.name}.training-{digest}"


def _id_rows(recipe: Recipe, split: Split, options: RunOptions, *, same_rows: bool) -> NDArray[np.int64] | None:
    """Rows of the artifact that a recipe builds on; None where it builds on none. Raises as `check_id_model`."""
    folder = options.id_model
    if recipe.requires is None:
        if folder is not None:
            raise RecipeError(f"recipe {recipe.name!r} builds on no other model: --id-model {folder} has no effect")
        return None
    if folder is None:
        raise RecipeError(f"recipe {recipe.name!r} builds on {recipe.requires!r}: give its artifact with --id-model")
    if options.parent is None:  # an update leaves out the same questions
        require_all_validation(f"--id-model {folder}", read_manifest(folder))
    return check_id_model(recipe, split, folder, same_rows=same_rows)


def _teacher(recipe: Recipe, split: Split, folder: Path | None) -> Teacher | None:
    """The exported lists that a recipe learns from; raises `RecipeError` and `DataError`."""
    if not recipe.method.needs_teacher:
        if folder is not None:
            raise RecipeError(f"recipe {recipe.name!r} learns from no teacher: --teacher {folder} has no effect")
        return None
    if folder is None:
        raise RecipeError(
            f"recipe {recipe.name!r} learns from another artifact's lists: write them with `python -m training "
            "teacher ARTIFACT`, and give the folder with --teacher"
        )
    teacher, dataset = Teacher.read(folder), split.dataset
    expected = {"data_sha256": dataset.sha256, "split": split.name, "ties": dataset.ties, "fitted_on": "train"}
    for name, value in expected.items():
        if teacher.facts.get(name) != value:
            found = str(teacher.facts.get(name))[:40]
            raise RecipeError(f"--teacher {folder} has {name} {found!r}, and {value[:40]!r} is needed")
    return teacher


def _training_record(
    recipe: Recipe,
    fitted: Trained,
    split: Split,
    options: RunOptions,
    precision: Settled,
    teacher: Teacher | None,
) -> dict[str, Any]:
    import torch
    import transformers

    return {
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "stopped_by": fitted.stopped_by,
        "seed": options.seed,
        "ties": split.dataset.ties,
        "trained_until": _trained_until(split),
        "precision": precision.taken,
        "precision_asked": precision.asked,
        "precision_milliseconds": {name: round(spent, 3) for name, spent in precision.milliseconds.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "time_budget_minutes": options.time_budget,
        **({"teacher": teacher.facts} if teacher is not None else {}),
        **({"id_model": id_model_record(options.id_model)} if recipe.requires and options.id_model else {}),
    }
