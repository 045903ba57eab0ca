"""Trains a user encoder and an item tower; the artifact is served by searching an index of item vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file

from index import FlatIndex
from modeling.artifact.manifest import Manifest
from modeling.artifact.tensor_files import save_arrays
from modeling.backbone.adapters import adapter_of
from modeling.encoder.build import Sources, TextVectors
from modeling.encoder.history_state import HistoryState
from modeling.encoder.title_check import read_map
from modeling.encoder.user_encoder import UserEncoder
from modeling.methods.dense import read_dense, store_backbones
from training.adaptation.adapt import adapt
from training.adaptation.spec import AdaptationSpec, check_summaries
from training.adaptation.warm_up import warm_up
from training.checks import check_text
from training.effects import Effect, has_ids
from training.evaluation.full_ranking import evaluate
from training.evaluation.gates import gate_figures
from training.evaluation.metrics import Metrics
from training.export import write_artifact
from training.loop.auxiliary import Auxiliary
from training.loop.cold_items import ColdItems, map_cold_items
from training.loop.fit import FitOptions, Fitted, Trained, fit, read_text
from training.loop.module import RetrievalModule
from training.loop.student import Student
from training.methods.base import Job, TrainingMethod
from training.objectives.base import ObjectiveSpec, objective_class, objective_kinds
from training.objectives.contrastive import SemanticSpec
from training.objectives.distillation import DistillationSpec
from training.objectives.views import ViewsSpec
from training.recipe import MethodSettings, Recipe
from training.semantic.contrast import NeighbourContrast
from training.semantic.neighbours import Neighbours, find_neighbours
from training.semantic.texts import check_semantic, semantic_effects, text_vectors
from training.semantic.views import ViewContrast, Views, check_views, views_effects, write_views

TEXT = "parts/text.safetensors"


class DenseSettings(MethodSettings):
    """Settings of dense retrieval. ``objective``: the loss at every item boundary; ``distillation``: additional losses
    against a teacher's lists and item vectors; ``semantic``: contrastive losses over similar users and items;
    ``views``: the same over views that a language model writes; ``adaptation``: stages that adapt the language model
    before the training; ``warm_up``: epochs that train the items and the weights of the newest ones without the
    network, whose output then starts at zero.
    """

    kind: Literal["dense"] = "dense"
    objective: ObjectiveSpec = ObjectiveSpec()
    distillation: DistillationSpec = DistillationSpec()
    semantic: SemanticSpec = SemanticSpec()
    views: ViewsSpec = ViewsSpec()
    adaptation: AdaptationSpec = AdaptationSpec()
    warm_up: int = Field(0, ge=0, le=1000, description="epochs that train items without the network first; 0: none")
    encodes: ClassVar[bool] = True
    builds_on: ClassVar[bool] = True

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """Conditions under which settings have an effect; those of the objective depend on its kind."""

        def objective(recipe: Recipe) -> ObjectiveSpec:
            assert isinstance(recipe.method, DenseSettings)
            return recipe.method.objective

        def of_kind(setting: str) -> Effect:
            kinds = [kind for kind in objective_kinds() if setting in objective_class(kind).settings]
            return Effect(
                f"method.objective.kind {' or '.join(map(repr, kinds))}", lambda recipe: objective(recipe).kind in kinds
            )

        fields = (
            "negatives",
            "popularity_power",
            "label_smoothing",
            "logq",
            "symmetric",
            "mask_seen",
            "calibration",
            "queue",
        )
        return {f"objective.{name}": of_kind(name) for name in fields} | {
            **_distillation_effects(),
            **_adaptation_effects(),
            **semantic_effects(),
            **views_effects(),
            "objective.momentum": Effect("method.objective.queue over 0", lambda recipe: objective(recipe).queue > 0),
            "objective.pull": Effect("items with an id table", has_ids),
            "objective.pull_share": Effect("method.objective.pull over 0", lambda recipe: objective(recipe).pull > 0),
        }

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` for settings that contradict each other, with the name of the setting to change."""
        if self.objective.pull and recipe.requires is None:
            raise ValueError("method.objective.pull needs requires=<id recipe>: there is no id space to be pulled to")
        if self.objective.queue and (self.objective.kind != "in_batch" or recipe.items.tower != "encoder"):
            raise ValueError(
                "method.objective.queue keeps vectors that an encoder made earlier: kind='in_batch' and "
                f"items.tower='encoder' are needed (given {self.objective.kind!r} and {recipe.items.tower!r})"
            )
        if self.objective.mask_seen and self.objective.label_smoothing:
            raise ValueError(
                "method.objective.label_smoothing gives a share of the target to every item: with "
                f"method.objective.mask_seen it is 0 (given {self.objective.label_smoothing:g})"
            )
        taken = self.distillation
        if taken.ranking and not (taken.position or taken.confidence or taken.consistency):
            raise ValueError("method.distillation.ranking needs a weight over 0: position, confidence or consistency")
        if taken.used and recipe.items.tower == "encoder":
            raise ValueError("method.distillation needs the vectors of all items: items.tower='encoder' has none")
        if taken.embedding and (
            recipe.items.tower != "id" or recipe.history.form != "ids" or recipe.requires or recipe.items.words
        ):
            raise ValueError(
                "method.distillation.embedding is added to an id table that starts at random: items.tower='id', "
                "history.form='ids', no requires and no items.words are needed"
            )
        if recipe.items.frozen and recipe.requires is None:
            raise ValueError("items.frozen needs requires=<id recipe>: there is no id table to be kept")
        check_semantic(recipe, self.semantic)
        check_views(recipe, self.views)
        self._check_adapter(recipe)
        self._check_adaptation(recipe)
        if self.warm_up and not (recipe.projector.residual and recipe.projector.kind in ("linear", "mlp")):
            raise ValueError(
                "method.warm_up trains the newest items before the projector: projector.residual=true and "
                f"projector.kind='linear' or 'mlp' are needed (given {recipe.projector.residual} and "
                f"{recipe.projector.kind!r})"
            )
        if self.warm_up and recipe.items.tower == "encoder":
            raise ValueError("method.warm_up trains items' own vectors, and items.tower='encoder' has none")
        if recipe.items.words and recipe.requires is not None:
            raise ValueError("items.words starts items from their titles, and requires from another model's table")
        if recipe.items.tower == "encoder" and objective_class(self.objective.kind).needs_all:
            raise ValueError(
                f"method.objective.kind={self.objective.kind!r} compares with the vectors of all items, which "
                "items.tower='encoder' would have to encode for every batch: 'in_batch' is allowed"
            )
        if recipe.history.form == "codes":
            raise ValueError("history.form='codes' needs a method that writes codes, and 'dense' writes nothing")

    def _check_adapter(self, recipe: Recipe) -> None:
        form = recipe.history.form
        if adapter_of(recipe.adapter.kind).needs_condition and (recipe.requires is None or form == "text"):
            raise ValueError(
                f"adapter.kind={recipe.adapter.kind!r} is gated by the state of an id model: requires=<id recipe> and "
                f"a history with ids are needed (given requires={recipe.requires!r}, history.form={form!r})"
            )

    def _check_adaptation(self, recipe: Recipe) -> None:
        check_summaries(recipe, self.adaptation)
        if not self.adaptation.used:
            return
        if recipe.backbone.own or recipe.backbone.random_weights or recipe.history.form == "ids":
            raise ValueError(
                "method.adaptation changes a pretrained language model that reads titles: backbone.source other than "
                "'none', no random weights and a history of titles are needed (given "
                f"{recipe.backbone.source!r} with history.form={recipe.history.form!r})"
            )
        if recipe.needs_text_vectors and recipe.items.text_source is None:
            raise ValueError("method.adaptation changes what would read titles: items.text_source is needed")

    @property
    def needs_teacher(self) -> bool:
        """Whether a weight of distillation is over 0."""
        return self.distillation.used

    def reads_titles(self, recipe: Recipe) -> bool:
        """Whether titles are needed: as vectors, as tokens, or to find similar users, items and views."""
        return self.semantic.used or self.views.used or recipe.needs_text_vectors or recipe.history.reads_tokens


def _adaptation_effects() -> dict[str, Effect]:
    """Settings of an adaptation stage have an effect if the stage has steps."""

    def steps(*stages: str) -> Effect:
        def acts(recipe: Recipe) -> bool:
            assert isinstance(recipe.method, DenseSettings)
            return any(getattr(recipe.method.adaptation, stage) for stage in stages)

        return Effect(f"{' or '.join('method.adaptation.' + stage for stage in stages)} over 0", acts)

    masked, simcse = steps("masked_steps"), steps("simcse_steps")
    either = steps("masked_steps", "simcse_steps", "passage_steps")
    return {
        "adaptation.texts": either,
        "adaptation.rate": either,
        "adaptation.masked": masked,
        "adaptation.dropout": simcse,
        "adaptation.temperature": simcse,
    }


def _distillation_effects() -> dict[str, Effect]:
    """Settings of the losses over a teacher's lists have an effect if the loss has a weight."""

    def weight(*losses: str) -> Effect:
        def acts(recipe: Recipe) -> bool:
            assert isinstance(recipe.method, DenseSettings)
            return any(getattr(recipe.method.distillation, loss) > 0 for loss in losses)

        return Effect(f"{' or '.join('method.distillation.' + loss for loss in losses)} over 0", acts)

    lists, ranking = weight("ranking", "divergence"), weight("ranking")
    return {
        "distillation.candidates": lists,
        "distillation.shuffled": lists,
        **{f"distillation.{name}": ranking for name in ("position", "confidence", "consistency")},
        "distillation.temperature": weight("divergence"),
    }


class DenseTraining(TrainingMethod[DenseSettings]):
    """Trains a `modeling.methods.dense.DenseModel`. A required id model may have its items in any order."""

    kind, Settings = "dense", DenseSettings
    same_rows, updates = False, True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.text: TextVectors | None = read_text(
            self.recipe, self.split, job.sources, self.console, job.start.whitening() if job.start else None
        )
        check_text(self.text, self.recipe)
        self.fitted: Fitted | None = None
        self.stages: dict[str, dict[str, Any]] = {}
        self.cold: ColdItems | None = None
        self.neighbours: Neighbours | None = None
        self.views: Views | None = None

    def fit(self, options: FitOptions) -> Trained:
        """See `training.loop.fit.fit`."""
        sources = self.job.sources
        if self.job.start is None:  # else the backbone is the parent's, which was adapted
            sources, self.stages = adapt(
                self.recipe, self.split, self.settings.adaptation, sources, work=options.work / "adaptation",
                seed=options.seed, fitted_on=options.fitted_on, console=self.console,
            )  # fmt: skip
        self.fitted = fit(
            self.recipe, self.split,
            replace(
                options, anchor_ND=self._anchor(), history_state=self._history_state(), start=self.job.start
            ),
            self.settings.objective, self._auxiliaries(options),
            sources=sources, text=self.text, console=self.console, before=partial(self._warm_up, options),
        )  # fmt: skip
        if self.recipe.items.cold == "mapped":
            length = None if self.cold is None else self.cold.length  # a refit has trained on validation
            self.cold = map_cold_items(self.fitted.model.encoder, self.split, options, length=length)
            self.console.print(str(self.cold), highlight=False)
        return self.fitted

    def _warm_up(self, options: FitOptions, module: RetrievalModule) -> None:
        if self.settings.warm_up and self.job.start is None:  # an update has the weights of its parent
            self.stages |= warm_up(self.recipe, self.split, options, module, self.settings.warm_up, self.console)

    @property
    def report(self) -> dict[str, Any]:
        """See `TrainingMethod.report`: stages before the training, vectors of items without interactions, hash of the
        neighbours, and differences of an adapter's gates between users."""
        found = super().report | ({} if self.cold is None else {"cold_items": vars(self.cold)})
        found |= {"stages": self.stages} if self.stages else {}
        found |= {"neighbours": {"sha256": self.neighbours.sha256}} if self.neighbours is not None else {}
        found |= {"views": self.views.record} if self.views is not None else {}
        if self.fitted is None or self.fitted.model.encoder.history_state is None:
            return found
        return found | {"gates": gate_figures(self.fitted.model.encoder, list(self.split.validation.histories()))}

    def validate(self, seed: int) -> Metrics:
        """See `TrainingMethod.validate`."""
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

    def write(self, folder: Path, **facts: Any) -> Manifest:
        """See `training.export.write_artifact`."""
        assert self.fitted is not None
        return write_artifact(folder, self.recipe, self.split, self.fitted, **facts)

    @classmethod
    def repaired(cls, folder: Path, manifest: Manifest, sources: Sources) -> Manifest:
        """See `TrainingMethod.repaired`: stores the whitening map in row order, and copies local backbone folders."""
        if (path := folder / TEXT).exists():
            arrays = load_file(path)
            arrays["map"], _ = read_map(arrays["map"], folder.name)
            save_arrays(arrays, path)
        return store_backbones(folder, manifest, sources)

    def _auxiliaries(self, options: FitOptions) -> Callable[[UserEncoder], Sequence[Auxiliary]]:
        """Factory of the losses in addition to the objective, for a given encoder."""
        makers: list[Callable[[UserEncoder], Auxiliary]] = []
        if (teacher := self.job.teacher) is not None:
            taken = self.settings.distillation
            makers.append(lambda encoder: Student(taken, teacher, encoder.items, options.seed))
        if (spec := self.settings.semantic).used:
            histories = self.split.train_rows(options.fitted_on)
            sources = self.job.sources
            texts_NC = text_vectors(spec, self.split, histories, sources, self.console)
            with self.console.status("finding similar items and users"):
                found = find_neighbours(texts_NC, histories, spec, seed=options.seed, folder=sources.vectors)
            self.neighbours = found
            makers.append(lambda encoder: NeighbourContrast(spec, found, texts_NC, histories, encoder.hidden_size))
        if (made := self.settings.views).used:
            told = self.split.train_rows(options.fitted_on)
            views = write_views(made, self.split, told, self.job.sources, seed=options.seed, console=self.console)
            self.views = views
            makers.append(lambda encoder: ViewContrast(made, views, told, encoder.hidden_size))
        return lambda encoder: [make(encoder) for make in makers]

    def _anchor(self) -> NDArray[np.float32] | None:
        """Id table [N, D] of the required artifact, in the row order of the data set; None without one."""
        if self.job.id_model is None or self.job.id_rows is None:
            return None
        vectors_ND = load_file(self.job.id_model / "parts" / "items.safetensors")["ids.weight"]
        return np.ascontiguousarray(vectors_ND[self.job.id_rows])

    def _history_state(self) -> HistoryState | None:
        """The required id model, for a gated adapter, in the row order of the data set; None for other adapters."""
        if not adapter_of(self.recipe.adapter.kind).needs_condition:
            return None
        folder = self.job.id_model
        assert folder is not None and self.job.id_rows is not None  # the recipe requires it
        table_ND = load_file(folder / "parts" / "items.safetensors")["ids.weight"]
        weights = {
            "ids.weight": torch.from_numpy(table_ND[np.append(self.job.id_rows, -1)]),
            **{f"backbone.{name}": torch.from_numpy(weight)
               for name, weight in load_file(folder / "backbone" / "model.safetensors").items()},
        }  # fmt: skip
        histories = self.split.train_rows()
        return HistoryState.of(read_dense(folder)[1].model, len(self.job.id_rows), weights, histories)


METHOD = DenseTraining
