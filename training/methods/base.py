"""Interface of recommendation methods in training: a method fits, validates and writes models of one kind.

A method is a module of this package with a subclass of `TrainingMethod` called ``METHOD``. The module's name is the
method's kind, and equals the name of the module of `modeling.methods` that stores and loads the trained models.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from index import Catalog
from modeling.artifact.manifest import ArtifactError, Manifest
from modeling.encoder.build import Sources
from modeling.methods import Loaded, get_method
from modeling.methods.base import Method
from modeling.methods.dense import read_dense
from training.data.dataset import Dataset
from training.data.splits import Split, Targets, global_time, leave_one_out
from training.evaluation.metrics import Metrics
from training.evaluation.teachers.lists import Teacher
from training.loop.fit import FitOptions, Trained
from training.provenance import (
    require_same_data,
    require_same_split,
    require_same_ties,
    require_unseen_validation,
)
from training.recipe import MethodSettings, Recipe, RecipeError
from training.updating.warm_start import WarmStart

S = TypeVar("S", bound=MethodSettings)


@dataclass(frozen=True)
class Job:
    """Inputs of a training.

    Attributes:
        recipe: with the settings of the method.
        split: of the data.
        console: for progress.
        sources: folders of backbones made on this machine.
        id_model: artifact of the recipe in ``recipe.requires``; None without one.
        id_rows: its catalog rows in the row order of the data set [N].
        teacher: lists of another artifact for distillation; None without a teacher.
        start: weights of the parent artifact, for an update; None for a full training.
    """

    recipe: Recipe
    split: Split
    console: Console
    sources: Sources = field(default_factory=lambda: Sources(download=True))
    id_model: Path | None = None
    id_rows: NDArray[np.int64] | None = None
    teacher: Teacher | None = None
    start: WarmStart | None = None

    @property
    def backbone(self) -> Path | None:
        """Folder of the backbone, if it was made on this machine; None: ``recipe.backbone.source``."""
        return cast("Path | None", self.sources.backbone)


class TrainingMethod(ABC, Generic[S]):
    """Trains one model. ``fit`` must be called first; it may be called again for a refit.

    Attributes:
        kind: name of the module.
        Settings: class of the recipe's section ``method``.
        one_process: whether training in several processes is refused.
        same_rows: whether the artifact ``Job.id_model`` must have the items of the data set in the same order.
        updates: whether a training can start from the weights of an earlier artifact, ``Job.start``.
    """

    kind: ClassVar[str]
    Settings: type[S]
    one_process: ClassVar[bool] = False
    same_rows: ClassVar[bool] = True
    updates: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        self.job, self.recipe, self.split, self.console = job, job.recipe, job.split, job.console
        self.settings = cast(S, job.recipe.method)

    @classmethod
    def stored(cls) -> Method[Any]:
        """The method that stores and loads the trained models."""
        return get_method(cls.kind)

    @classmethod
    def check_processes(cls, recipe: Recipe) -> None:
        """Raises `RecipeError` if the method trains in one process only and several were started."""
        if cls.one_process and (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
            raise RecipeError(f"recipe {recipe.name!r} trains in one process: started in {processes}; allowed is 1")

    @property
    def report(self) -> dict[str, Any]:
        """Figures of the fit for the manifest's ``training``."""
        return {}

    @abstractmethod
    def fit(self, options: FitOptions) -> Trained:
        """Train on the training part of the split and keep the epoch that is best on validation.

        Raises:
            RecipeError: the recipe does not fit the data or the backbone.
        """

    @abstractmethod
    def validate(self, seed: int) -> Metrics:
        """Figures over all validation users."""

    @abstractmethod
    def write(self, folder: Path, **facts: Any) -> Manifest:
        """Write the artifact; ``facts``: fields of its manifest that the run provides."""

    @classmethod
    def repaired(cls, folder: Path, manifest: Manifest, sources: Sources) -> Manifest:
        """Convert the files of an artifact of an earlier version to the current format, for `rewrite`.

        Args:
            folder: a copy of the artifact, changed in place.
            manifest: of the artifact.
            sources: current paths of backbone folders that the artifact refers to but does not contain.

        Returns:
            The manifest, not sealed yet.
        """
        return manifest

    @classmethod
    def other_figures(cls, loaded: Loaded[Any], split: Split, targets: Targets, seed: int) -> dict[str, Any]:
        """Metrics of a loaded artifact in addition to the main protocol, for `evaluate` and `compare`."""
        return {}


def split_of(dataset: Dataset, name: str) -> Split:
    """The split ``name``: ``leave-one-out``, ``global-time``, or the full name stored in a manifest.

    Raises:
        RecipeError: the name is unknown, or the split has other shares than in this version.
    """
    splits = {"leave-one-out": leave_one_out, "global-time": global_time}
    kind = name.partition(" ")[0]
    if kind not in splits:
        raise RecipeError(f"split {name!r} not found; known splits: {', '.join(splits)}")
    split = splits[kind](dataset)
    if name not in (kind, split.name):
        raise RecipeError(f"split {name!r} has other shares than this version's {split.name!r}")
    return split


def check_id_model(recipe: Recipe, split: Split, folder: Path, *, same_rows: bool = True) -> NDArray[np.int64]:
    """Catalog rows of the artifact that ``recipe`` requires, in the row order of the data set [N].

    The artifact must have the same data, split and order of ties, and must be fitted on the training part: ``recipe``
    is selected on validation, so a model trained on validation would give it the answers.

    Args:
        recipe: with ``requires``.
        split: that ``recipe`` is trained on.
        folder: the artifact.
        same_rows: whether the artifact must have exactly the items of the data set, in the same order.

    Raises:
        RecipeError: the artifact has another recipe.
        ArtifactError: items are missing, additional or in another order, or the artifact was trained on validation.
    """
    (manifest, _), dataset = read_dense(folder), split.dataset
    if manifest.recipe != recipe.requires:
        raise RecipeError(f"--id-model {folder} holds recipe {manifest.recipe!r}, and {recipe.requires!r} is required")
    catalog = Catalog.read(folder / "catalog.parquet")
    rows = [catalog.row(item_id) for item_id in dataset.item_ids]
    if missing := [item for item, row in zip(dataset.item_ids, rows, strict=True) if row is None]:
        raise ArtifactError(f"--id-model {folder} lacks {len(missing)} items of {dataset.name}, first {missing[0]!r}")
    if same_rows and rows != list(range(len(catalog))):
        raise ArtifactError(f"--id-model {folder} has other items than {dataset.name}, or another order of them")
    label = f"--id-model {folder}"
    require_same_data(label, manifest, dataset)
    require_same_split(label, manifest, split.name)
    require_same_ties(label, manifest, dataset)
    require_unseen_validation(label, manifest, folder)
    return np.asarray(rows, np.int64)
