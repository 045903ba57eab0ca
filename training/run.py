"""One training run from a recipe's name to an artifact folder; what ``train`` on the command line does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import load_file

from index import Catalog
from modeling.artifact.manifest import AnyManifest
from modeling.encoder.build import Sources, TextVectors
from modeling.inference.precision_choice import PrecisionAsked, Settled, settle
from modeling.methods.dense import ArtifactError, read_manifest
from training.checks import check_learnable, check_text
from training.data.dataset import Dataset
from training.data.splits import FittedOn, Split, global_time, leave_one_out
from training.evaluation.metrics import Metrics
from training.export import write_artifact, write_generative_artifact
from training.loop.budget import OutOfTime, budget
from training.loop.fit import FitOptions, Fitted, Precision, Trained, fit, read_text
from training.methods.generative import FittedGenerator, fit_generative
from training.methods.next_token import evaluate_generator
from training.provenance import (
    id_model_record,
    require_same_data,
    require_same_split,
    require_same_ties,
    require_unseen_validation,
)
from training.recipes import Recipe, RecipeError
from training.tiny import ensure_tiny

TINY = "tiny"


@dataclass(frozen=True)
class RunOptions:
    """What ``train`` was asked for, apart from recipe and data."""

    out: Path
    seed: int = 0
    time_budget: float | None = None
    precision: PrecisionAsked = "fp32"
    precision_forced: bool = False
    split: str = "leave-one-out"
    refit: bool = False
    id_model: Path | None = None
    keep_work: bool = False


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    manifest: AnyManifest
    validation: Metrics
    fitted: Trained


def split_of(dataset: Dataset, name: str) -> Split:
    """The split called ``name``: ``leave-one-out``, ``global-time``, or the full name a manifest holds."""
    splits = {"leave-one-out": leave_one_out, "global-time": global_time}
    kind = name.partition(" ")[0]
    if kind not in splits:
        raise RecipeError(f"split {name!r} not found; known splits: {', '.join(splits)}")
    split = splits[kind](dataset)
    if name not in (kind, split.name):
        raise RecipeError(f"split {name!r} has other shares than this version's {split.name!r}")
    return split


def run(recipe: Recipe, dataset: Dataset, options: RunOptions, console: Console) -> RunResult:
    """Train ``recipe`` on ``dataset`` and write its artifact to ``options.out``.

    A run that was killed goes on from its last checkpoint when it is started again with the same recipe, data and
    seed; it then ends as it would have without the kill.
    """
    if recipe.scoring == "choose" and (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        # batches of placeholders give the map of item vectors no gradient, and others on other processes would wait
        raise RecipeError(f"recipe {recipe.name!r} trains in one process: started in {processes}; allowed is 1")
    with budget(options.time_budget) as clock:
        split = split_of(dataset, options.split)
        check_learnable(recipe, split)
        precision = _precision(options, console)
        anchor = _id_model_vectors(recipe, split, options.id_model)
        work = _work_folder(recipe, dataset, options, precision.taken)
        sources = _sources(recipe, split, options, console)
        way: _Dense | Writing = (
            _Dense(recipe, split, sources, _read_text(recipe, split, sources, console), console)
            if recipe.scoring == "dense"
            else Writing(
                recipe,
                split,
                cast("Path | None", sources.backbone),
                options.id_model if recipe.requires else None,
                console,
            )
        )
        fit_options = FitOptions(
            work=work / "train",
            seed=options.seed,
            share=0.5 if options.refit else 1.0,
            precision=cast(Precision, precision.taken),
            anchor_ND=anchor,
        )
        fitted = _learned(way.fit(fit_options), options)
        validation = way.validate(options.seed)
        fitted_on: FittedOn = "train"
        if options.refit:
            fitted_on = "train+validation"
            epochs = max(1, round(fitted.best_epoch))
            console.print(f"refit on train + validation for {epochs} epochs")
            fitted = way.fit(
                replace(fit_options, work=work / "refit", fitted_on="train+validation", epochs=epochs, share=1.0)
            )
            if fitted.stopped_by == "time budget":
                clock.check("refitting on train + validation")
    if int(os.environ.get("RANK", "0")):
        raise SystemExit(0)  # under torchrun the first process writes the artifact
    manifest = way.write(
        options.out,
        fitted_on=fitted_on,
        metrics={f"validation_{name}": interval.value for name, interval in validation.accuracy.items()},
        training={**_training_record(recipe, fitted, dataset, options, precision), **way.report},
    )
    if not options.keep_work:
        shutil.rmtree(work, ignore_errors=True)
    return RunResult(manifest, validation, fitted)


@dataclass
class _Dense:
    """Trains, validates and writes a user encoder."""

    recipe: Recipe
    split: Split
    sources: Sources
    text: TextVectors | None
    console: Console
    fitted: Fitted | None = None
    report: ClassVar[dict[str, Any]] = {}

    def fit(self, options: FitOptions) -> Trained:
        self.fitted = fit(self.recipe, self.split, options, sources=self.sources, text=self.text, console=self.console)
        return self.fitted

    def validate(self, seed: int) -> Metrics:
        """Figures over all validation users."""
        from index import FlatIndex
        from training.evaluation.full_ranking import evaluate

        assert self.fitted is not None
        encoder = self.fitted.model.encoder.eval()
        vectors_ND = encoder.items.vectors().detach().float().cpu().numpy()
        with self.console.status("ranking the catalog for all validation users"):
            return evaluate(
                encoder,
                vectors_ND,
                FlatIndex.build(vectors_ND),
                self.split.validation,
                self.split.popularity(),
                seed=seed,
            ).metrics

    def write(self, folder: Path, **facts: Any) -> AnyManifest:
        assert self.fitted is not None
        return write_artifact(folder, self.recipe, self.split, self.fitted, **facts)


@dataclass
class Writing:
    """Trains, validates and writes a language model that writes titles."""

    recipe: Recipe
    split: Split
    backbone: Path | None
    collaborative: Path | None
    console: Console
    fitted: FittedGenerator | None = None

    @property
    def report(self) -> dict[str, Any]:
        """Figures about the names that are written."""
        return self.fitted.report if self.fitted else {}

    def fit(self, options: FitOptions) -> Trained:
        self.fitted = fit_generative(
            self.recipe,
            self.split,
            options,
            folder=self.backbone,
            collaborative=self.collaborative,
            selected=self.fitted if options.fitted_on != "train" else None,
            console=self.console,
        )
        return self.fitted

    def validate(self, seed: int) -> Metrics:
        """Figures over all validation users."""
        assert self.fitted is not None
        targets = self.split.validation
        with Progress(console=self.console, transient=True) as bar:
            task = bar.add_task(f"writing for {len(targets)} validation users", total=len(targets))
            return evaluate_generator(
                self.fitted.writer,
                targets,
                self.split.popularity(),
                seed=seed,
                progress=lambda n: bar.advance(task, n),
            ).metrics

    def write(self, folder: Path, **facts: Any) -> AnyManifest:
        assert self.fitted is not None
        return write_generative_artifact(
            folder, self.recipe, self.split, self.fitted, collaborative=self.collaborative, **facts
        )


def _read_text(recipe: Recipe, split: Split, sources: Sources, console: Console) -> TextVectors | None:
    text = read_text(recipe, split, sources, console)
    check_text(text, recipe)
    return text


def _learned(fitted: Trained, options: RunOptions) -> Trained:
    """Refuse what was cut before the first epoch was over: nothing was compared, and hardly anything learned.

    Raises:
        OutOfTime: so it was.
        RecipeError: there was no step.
    """
    if fitted.steps and (fitted.epochs >= 1 or fitted.stopped_by != "time budget"):
        return fitted
    if fitted.stopped_by != "time budget":
        raise RecipeError("nothing was learned: training ended without a step, and nothing was written")
    whole = fitted.seconds / max(fitted.epochs, 1e-9) / 60
    raise OutOfTime(
        f"the time budget of {options.time_budget:g} min ended after {fitted.epochs:.2f} of the first epoch, which "
        f"takes about {whole:.2g} min; nothing was written: give more with --time-budget"
    )


def _sources(recipe: Recipe, split: Split, options: RunOptions, console: Console) -> Sources:
    """Backbones made here: ``tiny`` is trained (or found) beside the artifact."""
    user, text = recipe.backbone.source == TINY, recipe.needs_text_vectors and recipe.text_backbone == TINY
    if not user and not text:
        return Sources(download=True)
    folder = ensure_tiny(
        split.dataset.titles,
        split.dataset.categories,
        split.train_rows(),
        cache=options.out.absolute().parent / ".backbones",
        seed=options.seed,
        console=console,
    )
    return Sources(folder if user else None, folder if text and not user else None, download=True)


def _precision(options: RunOptions, console: Console) -> Settled:
    """What the run computes in; measured where it was not simply fp32, and said.

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


def _work_folder(recipe: Recipe, dataset: Dataset, options: RunOptions, precision: str) -> Path:
    """Where checkpoints live: named by everything that decides the result, so that only the same run resumes."""
    decides = [
        recipe.model_dump(mode="json"),
        dataset.sha256,
        dataset.ties,
        options.seed,
        precision,
        options.split,
    ]
    if recipe.requires is not None and options.id_model is not None:
        decides.append(read_manifest(options.id_model).version)
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return options.out.absolute().parent / f".{options.out.name}.training-{digest}"


def _id_model_vectors(recipe: Recipe, split: Split, folder: Path | None) -> NDArray[np.float32] | None:
    """Item vectors of the artifact this recipe builds on, in the row order of the data set; None for a recipe that
    writes, which takes the artifact whole."""
    if recipe.requires is None:
        if folder is not None:
            raise RecipeError(f"recipe {recipe.name!r} builds on no other model: --id-model {folder} has no effect")
        return None
    if folder is None:
        raise RecipeError(f"recipe {recipe.name!r} builds on {recipe.requires!r}: give its artifact with --id-model")
    rows = check_id_model(recipe, split, folder)
    if recipe.scoring != "dense":
        return None
    vectors = load_file(folder / "parts" / "items.safetensors")["ids.weight"]
    return np.ascontiguousarray(vectors[rows])


def check_id_model(recipe: Recipe, split: Split, folder: Path) -> NDArray[np.int64]:
    """Rows of the artifact that ``recipe`` builds on, in the row order of the data set.

    It has to be of the same data, split and order of ties, and fitted on the training part: ``recipe`` is selected on
    validation, and a model that has learned the answers would be selected for them.

    Raises:
        RecipeError: it is of another recipe.
        ArtifactError: it lacks items; has others, or another order of them, for a recipe that takes it whole; or has
            seen what is asked for.
    """
    manifest, dataset = read_manifest(folder), split.dataset
    if manifest.recipe != recipe.requires:
        raise RecipeError(f"--id-model {folder} holds recipe {manifest.recipe!r}, and {recipe.requires!r} is required")
    catalog = Catalog.read(folder / "catalog.parquet")
    rows = [catalog.row(item_id) for item_id in dataset.item_ids]
    if missing := [item for item, row in zip(dataset.item_ids, rows, strict=True) if row is None]:
        raise ArtifactError(f"--id-model {folder} lacks {len(missing)} items of {dataset.name}, first {missing[0]!r}")
    if recipe.scoring != "dense" and rows != list(range(len(catalog))):
        raise ArtifactError(f"--id-model {folder} has other items than {dataset.name}, or another order of them")
    label = f"--id-model {folder}"
    require_same_data(label, manifest, dataset)
    require_same_split(label, manifest, split.name)
    require_same_ties(label, manifest, dataset)
    require_unseen_validation(label, manifest, folder)
    return np.asarray(rows, np.int64)


def _training_record(
    recipe: Recipe, fitted: Trained, dataset: Dataset, options: RunOptions, precision: Settled
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
        "ties": dataset.ties,
        "precision": precision.taken,
        "precision_asked": precision.asked,
        "precision_milliseconds": {name: round(spent, 3) for name, spent in precision.milliseconds.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "time_budget_minutes": options.time_budget,
        **({"id_model": id_model_record(options.id_model)} if recipe.requires and options.id_model else {}),
    }
