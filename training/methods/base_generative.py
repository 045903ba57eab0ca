"""What the training of all methods that write items has in common; what is written, and how, is the method's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import set_seed

from modeling.artifact.manifest import Manifest
from modeling.backbone.adapters import adapter_of
from modeling.encoder.build import Sources
from modeling.generation.base import ItemGenerator, ItemIdentifiers
from training.data.splits import Split, Targets
from training.evaluation.metrics import Metrics
from training.export import write_list_artifact
from training.item_ids.assign import AssignedIdentifiers
from training.loop.fit import FitOptions, Trained, sample_targets, train_module
from training.loop.module import TrainedModule
from training.methods.base import Job, TrainingMethod
from training.methods.next_token import evaluate_generator, written_metrics
from training.recipe import GenerativeSettings, Recipe, training_method

G = TypeVar("G", bound=GenerativeSettings)


@dataclass(frozen=True)
class FittedGenerator(Trained):
    """A trained generator and how it came about; ``report`` has figures about the names it writes and the weights it
    uses."""

    writer: ItemGenerator
    report: dict[str, Any]


class GenerativeTraining(TrainingMethod[G]):
    """Trains a language model to write items; a method says what is written (`named_items`), what is learned
    (`module`) and what asks the model (`generator`).

    Attributes:
        named: the network and the names of the items, from `fit` on.
        names: the names with the items in the order of popularity.
        popularity_N: how often each item was chosen in the part that is fitted on.
        fitted: the last fit.
    """

    named: AssignedIdentifiers
    names: ItemIdentifiers
    popularity_N: NDArray[np.int64]

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.fitted: FittedGenerator | None = None

    @property
    def report(self) -> dict[str, Any]:
        """Figures about the names that are written, and what was chosen on validation."""
        return self.fitted.report if self.fitted else {}

    # -- the method's ------------------------------------------------------------------------------------------------

    @abstractmethod
    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """What items are called by, and the network that is to write it; raises `RecipeError`."""

    def prepare(self, options: FitOptions) -> None:
        """Make what the method needs beside the named items; raises `RecipeError`."""

    @abstractmethod
    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> TrainedModule:
        """The loss over windows of users' sequences."""

    @abstractmethod
    def generator(self) -> ItemGenerator:
        """What asks the model as it is now."""

    def before_training(self, model: nn.Module, options: FitOptions) -> None:
        """A stage before the main training."""

    def epoch_figures(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, float]:
        """Figures after each epoch beside NDCG@10 and Recall@10 of what is written."""
        return {}

    def chosen_on_validation(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, Any]:
        """Choose what is chosen on validation, and return figures for the manifest."""
        return {}

    def keep_choices(self, generator: ItemGenerator, selected: ItemGenerator) -> None:
        """Give the generator of a refit, which has seen validation, what was chosen before it."""

    # -- what all have in common -------------------------------------------------------------------------------------

    def fit(self, options: FitOptions) -> FittedGenerator:
        """See `TrainingMethod.fit`."""
        recipe, seed = self.recipe, options.seed
        selected = self.fitted if options.fitted_on != "train" else None
        set_seed(seed)
        self.named = self.named_items(options.work, seed)
        self.popularity_N = self.split.popularity(options.fitted_on)
        popular_N = np.argsort(-self.popularity_N, kind="stable")
        self.names = ItemIdentifiers(self.named.tokens, popular_N, self.named.spelling)
        self.prepare(options)
        whole, network = recipe.backbone.own or recipe.adapter.kind == "full", self.named.model
        adapter = adapter_of(recipe.adapter.kind)
        adapted = network.requires_grad_(True) if whole else adapter.attach(network, recipe.adapter)
        hidden_dropout = recipe.backbone.dropout if recipe.backbone.own else 0.0
        module = self.module(adapted, recipe.history.dropout, hidden_dropout)
        targets = sample_targets(self.split.validation, self.settings.validation_users, seed)
        self.before_training(adapted, options)
        set_seed(seed)

        def figures() -> dict[str, float]:
            generator = self.generator()
            found = written_metrics(adapted, generator, targets)
            training = adapted.training
            adapted.eval()
            found |= self.epoch_figures(generator, targets, seed)
            adapted.train(training)
            return found

        trained = train_module(recipe, self.split, options, module, figures, console=self.console)
        module.close()
        adapter.merge(adapted).requires_grad_(False).eval()
        generator = self.generator()
        chosen = selected.report if selected else {}
        if options.fitted_on == "train":
            chosen = self.chosen_on_validation(generator, targets, seed)
        elif selected:
            self.keep_choices(generator, selected.writer)
        report = {**chosen, **self.named.report}
        self.fitted = FittedGenerator(writer=generator, report=report, **vars(trained))
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

    def write(self, folder: Path, **facts: Any) -> Manifest:
        """See `training.export.write_list_artifact`."""
        assert self.fitted is not None
        return write_list_artifact(folder, self.recipe, self.split, self.fitted.writer, **facts)


def fit_generative(
    recipe: Recipe,
    split: Split,
    options: FitOptions,
    *,
    folder: Path | None,
    collaborative: Path | None = None,
    console: Console,
) -> FittedGenerator:
    """Train a recipe that writes, without an artifact of it.

    Args:
        recipe: whose method is a `GenerativeTraining`.
        split: whose training part is learned from.
        options: how the run is carried out.
        folder: the backbone, where it was made here; None: ``recipe.backbone.source``.
        collaborative: dense artifact of the same catalog that the recipe builds on.
        console: for progress.

    Raises:
        RecipeError: the recipe does not fit the data or the backbone.
    """
    sources = Sources(folder, download=True)
    job = Job(recipe, split, console, sources, collaborative)
    training: GenerativeTraining[Any] = training_method(recipe.method.kind)(job)
    return training.fit(options)
