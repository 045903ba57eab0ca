"""Training shared by all generative methods. A subclass defines the token sequences of the items and the loss."""

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
    """A trained generator or ranker (`modeling.methods.base_generative.NamedModel`) and facts about its training;
    ``report``: figures about the item tokens and about choices made on validation."""

    writer: Any
    report: dict[str, Any]


class GenerativeTraining(TrainingMethod[G]):
    """Trains a language model to generate items. A subclass defines the item tokens (`named_items`), the loss
    (`module`) and decoding (`generator`).

    Attributes:
        named: the network and the item tokens, set by `fit`.
        names: the item tokens with the items in order of popularity.
        popularity_N: number of interactions of each item in the part that is fitted on.
        fitted: the last fit.
        untuned: the network before its adapter was attached; None if the whole network is trained.
        lists_each_epoch: whether lists are generated after each epoch to select the best one; otherwise only the
            figures of `epoch_figures` are used.
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
        """See `TrainingMethod.report`: figures about the item tokens, and choices made on validation."""
        return self.fitted.report if self.fitted else {}

    # -- defined by subclasses ---------------------------------------------------------------------------------------

    @abstractmethod
    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """The tokens of every item, and the network to train; raises `RecipeError`.

        Args:
            work: folder of the run.
            seed: of codes and of the network's initial weights.
        """

    def prepare(self, options: FitOptions) -> None:
        """Build further parts after `named_items`, such as the prompt; raises `RecipeError`."""

    @abstractmethod
    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> TrainedModule:
        """The loss over windows of users' sequences."""

    @abstractmethod
    def generator(self) -> Any:
        """A generator or ranker with the current weights."""

    def before_training(self, model: nn.Module, options: FitOptions) -> None:
        """Run a stage before the main training."""

    def epoch_figures(self, generator: Any, targets: Targets, seed: int) -> dict[str, float]:
        """Figures after each epoch in addition to NDCG@10 and Recall@10 of the generated lists."""
        return {}

    def chosen_on_validation(self, generator: Any, targets: Targets, seed: int) -> dict[str, Any]:
        """Choose settings of the generator on validation, and return figures for the manifest."""
        return {}

    def keep_choices(self, generator: Any, selected: Any) -> None:
        """Copy the settings chosen on validation to the generator of a refit, which is trained on validation."""

    # -- shared ------------------------------------------------------------------------------------------------------

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
        """Set the network, the item tokens and the popularity of the items."""
        self.named = self.named_items(options.work, seed)
        self.popularity_N = self.split.popularity(options.fitted_on)
        popular_N = np.argsort(-self.popularity_N, kind="stable")
        self.names = ItemIdentifiers(self.named.tokens, popular_N, self.named.spelling)

    def _trained(self, module: TrainedModule, adapted: nn.Module, targets: Targets, options: FitOptions) -> Trained:
        """Run the main training, with figures after each epoch; ``optimizer.epochs=0`` trains nothing (zero-shot)."""
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
        """Targets of the final metrics."""
        most = self.settings.final_users
        return self.split.validation if most is None else sample_targets(self.split.validation, most, seed)

    def _choose_windows(self, module: NextTokenModule, options: FitOptions, adapted: nn.Module) -> None:
        """Set the windows to train on and, with ``method.kept_states``, precompute the states of the frozen layers."""
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
        """Base and adapter, stored in the run's folder until the artifact is written."""
        assert self.named.info is not None and self.untuned is not None
        return TunedWriter.of_training(
            self.named.info, self.recipe.adapter, adapted, self.untuned, options.work / "parts",
            stored=stores_backbone(self.recipe.model_spec(), self.job.sources),
        )  # fmt: skip

    def validate(self, seed: int) -> Metrics:
        """See `TrainingMethod.validate`; over ``method.final_users`` validation users if that is set."""
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
    """Train a generative recipe without writing an artifact.

    Args:
        recipe: whose method is a `GenerativeTraining`.
        split: whose training part is used.
        options: of the run.
        folder: the backbone, if it was made on this machine; None: ``recipe.backbone.source``.
        collaborative: dense artifact of the same catalog that the recipe requires.
        console: for progress.

    Raises:
        RecipeError: the recipe does not fit the data or the backbone.
    """
    sources = Sources(folder, download=True)
    job = Job(recipe, split, console, sources, collaborative)
    training: GenerativeTraining[Any] = training_method(recipe.method.kind)(job)
    return training.fit(options)
