"""What the training of all methods that write items has in common; what is written, and how, is the method's."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import set_seed

from modeling.artifact.manifest import Manifest
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import TextTokenizer
from modeling.backbone.split import CannotCut, SplitBackbone
from modeling.encoder.build import Sources
from modeling.generation.base import ItemIdentifiers
from modeling.generation.factory import decoder_of
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.base_tuned import TunedWriter, untuned_twin
from modeling.methods.dense_files import stores_backbone
from training.data.splits import Split, Targets
from training.evaluation.metrics import Metrics
from training.export import write_list_artifact
from training.item_ids.assign import AssignedIdentifiers
from training.loop.budget import timed
from training.loop.fit import FitOptions, Trained, sample_targets, train_module, windows_for
from training.loop.kept_states import keep_states
from training.loop.module import TrainedModule
from training.methods.base import Job, TrainingMethod
from training.methods.next_token import NextTokenModule, evaluate_generator, written_metrics
from training.recipe import GenerativeSettings, Recipe, RecipeError, TokenSettings, training_method

UNTRAINED = "optimizer.epochs=0: zero-shot, nothing was trained"
G = TypeVar("G", bound=GenerativeSettings)


@dataclass(frozen=True)
class FittedGenerator(Trained):
    """A trained generator or ranker (`modeling.methods.base_generative.NamedModel`) and how it came about; ``report``
    has figures about the names it writes and the weights it uses."""

    writer: Any
    report: dict[str, Any]


class GenerativeTraining(TrainingMethod[G]):
    """Trains a language model to write items; a method says what is written (`named_items`), what is learned
    (`module`) and what asks the model (`generator`).

    Attributes:
        named: the network and the names of the items, from `fit` on.
        names: the names with the items in the order of popularity.
        popularity_N: how often each item was chosen in the part that is fitted on.
        fitted: the last fit.
        untuned: the network as it was before its adapter was attached; None where all of it is trained.
        lists_each_epoch: whether lists are made after each epoch, to select the best; else `epoch_figures` alone does.
    """

    lists_each_epoch: ClassVar[bool] = True

    named: AssignedIdentifiers
    names: ItemIdentifiers
    popularity_N: NDArray[np.int64]
    untuned: nn.Module | None

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
    def generator(self) -> Any:
        """What asks the model as it is now."""

    def before_training(self, model: nn.Module, options: FitOptions) -> None:
        """A stage before the main training."""

    def epoch_figures(self, generator: Any, targets: Targets, seed: int) -> dict[str, float]:
        """Figures after each epoch beside NDCG@10 and Recall@10 of what is written."""
        return {}

    def chosen_on_validation(self, generator: Any, targets: Targets, seed: int) -> dict[str, Any]:
        """Choose what is chosen on validation, and return figures for the manifest."""
        return {}

    def keep_choices(self, generator: Any, selected: Any) -> None:
        """Give the generator of a refit, which has seen validation, what was chosen before it."""

    # -- what all have in common -------------------------------------------------------------------------------------

    def fit(self, options: FitOptions) -> FittedGenerator:
        """See `TrainingMethod.fit`."""
        recipe, seed = self.recipe, options.seed
        selected = self.fitted if options.fitted_on != "train" else None
        set_seed(seed)
        self._name_items(options, seed)
        whole = recipe.backbone.own or recipe.adapter.kind == "full"
        adapter = adapter_of(recipe.adapter.kind)
        self.untuned = None if whole else untuned_twin(self.named.model)
        self.prepare(options)
        adapted = self.named.model.requires_grad_(True) if whole else adapter.attach(self.named.model, recipe.adapter)
        hidden_dropout = recipe.backbone.dropout if recipe.backbone.own else 0.0
        module = self.module(adapted, recipe.history.dropout, hidden_dropout)
        if isinstance(self.settings, TokenSettings) and isinstance(module, NextTokenModule):
            self._choose_windows(module, options, adapted)
        targets = sample_targets(self.split.validation, self.settings.validation_users, seed)
        self.before_training(adapted, options)
        set_seed(seed)
        trained = self._trained(module, adapted, targets, options)
        module.close()
        tuned = None if whole else self._parts(adapted, options)
        adapter.merge(adapted).requires_grad_(False).eval()
        generator = self.generator()
        generator.tuned = tuned
        chosen = selected.report if selected else {}
        if options.fitted_on == "train":
            chosen = self.chosen_on_validation(generator, targets, seed)
        elif selected:
            self.keep_choices(generator, selected.writer)
        report = {**chosen, **self.named.report, "validated_users": len(self._final(seed))}
        self.fitted = FittedGenerator(writer=generator, report=report, **vars(trained))
        return self.fitted

    def _name_items(self, options: FitOptions, seed: int) -> None:
        """Set the network, the names of the items, and how popular these are."""
        self.named = self.named_items(options.work, seed)
        self.popularity_N = self.split.popularity(options.fitted_on)
        popular_N = np.argsort(-self.popularity_N, kind="stable")
        self.names = ItemIdentifiers(self.named.tokens, popular_N, self.named.spelling)

    def _trained(self, module: TrainedModule, adapted: nn.Module, targets: Targets, options: FitOptions) -> Trained:
        """Run the main training, with figures after each epoch; nothing is trained with ``optimizer.epochs=0``."""
        if not self.recipe.optimizer.epochs:
            self.console.print("zero-shot: nothing is trained, the backbone is asked as it is")
            return Trained(stopped_by=UNTRAINED)

        def figures() -> dict[str, float]:
            generator = self.generator()
            found = written_metrics(adapted, generator, targets) if self.lists_each_epoch else {}
            training = adapted.training
            adapted.eval()
            found |= self.epoch_figures(generator, targets, options.seed)
            adapted.train(training)
            return found

        return train_module(self.recipe, self.split, options, module, figures, console=self.console)

    def _final(self, seed: int) -> Targets:
        """Questions of the final figures."""
        most = self.settings.final_users
        return self.split.validation if most is None else sample_targets(self.split.validation, most, seed)

    def _choose_windows(self, module: NextTokenModule, options: FitOptions, adapted: nn.Module) -> None:
        """Which windows are read, and the states of the frozen layers of all of them where they are kept."""
        settings, spec = cast(TokenSettings, self.settings), self.recipe.adapter
        module.most, kept = settings.sequences, settings.kept_states
        if kept is None or spec.layers is None or not self.recipe.optimizer.epochs:
            return
        module.fixed = True
        body, info = decoder_of(adapted), self.named.info
        assert info is not None, "a pretrained backbone is what is known of"
        try:
            split = SplitBackbone(body, info.layers - spec.layers)
        except CannotCut as error:
            raise RecipeError(f"method.kept_states={kept}: {error}") from error
        words = cast(Any, body).get_input_embeddings()
        windows = windows_for(self.recipe, self.split, options, module).windows
        texts = [module.text(window)[:-1] for window in windows]
        spelling = cast(TitleTokenizer, self.named.spelling)
        decides = [info.sha256, info.layers - spec.layers, TextTokenizer(spelling.tokenizer).sha256]
        adapted.eval()
        with Progress(console=self.console, transient=True) as bar:
            task = bar.add_task("states of the frozen layers", total=sum(map(len, texts)))
            module.kept = keep_states(
                options.cache or options.work, texts, lambda ids: split.lower(words(ids.to(words.weight.device))),
                decides=decides, width=info.hidden_size, kept=kept,
                progress=timed(bar, task, "computing the states of the frozen layers"),
            )  # fmt: skip
        adapted.train()
        module.split = split

    def _parts(self, adapted: nn.Module, options: FitOptions) -> TunedWriter:
        """The base and the adapter, kept beside the checkpoints until the artifact is written."""
        assert self.named.info is not None and self.untuned is not None
        return TunedWriter.of_training(
            self.named.info, self.recipe.adapter, adapted, self.untuned, options.work / "parts",
            stored=stores_backbone(self.recipe.model_spec(), self.job.sources),
        )  # fmt: skip

    def validate(self, seed: int) -> Metrics:
        """Figures over all validation users, or as many as the settings say."""
        assert self.fitted is not None
        targets = self._final(seed)
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
