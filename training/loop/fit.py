"""Trains one recipe on one split with the Hugging Face Trainer: progress, checkpoints, early stopping, resume."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed

from modeling.artifact.verified import Files
from modeling.encoder.build import Model, Sources, TextVectors, build_model, read_titles, trainable
from modeling.encoder.history_state import HistoryState
from modeling.encoder.item_tower import Whitening
from modeling.encoder.user_encoder import UserEncoder
from training.data.item_texts import item_texts
from training.data.splits import FittedOn, Split, Targets
from training.evaluation.full_ranking import encode_users, rank_all
from training.evaluation.metrics import question_values
from training.loop.auxiliary import Auxiliary
from training.loop.budget import minutes_left, timed
from training.loop.ema import WeightAverage
from training.loop.examples import EpochWindows, target_shares
from training.loop.fused_rms_norm import fused_rms_norms
from training.loop.module import RetrievalModule, TrainedModule
from training.loop.progress import Followed, TrainingProgress, say_progress
from training.loop.trainer import RecommenderTrainer, TimeBudget, last_complete_checkpoint
from training.objectives.base import ObjectiveSpec
from training.recipe import Recipe, RecipeError

Precision = Literal["fp32", "bf16"]
VALIDATION_USERS = 5000
"""Users ranked after each epoch to select the best; the final figures are over all of them."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Facts about a finished training."""

    epochs: float = 0.0
    best_epoch: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    stopped_by: str = "never trained"
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted(Trained):
    """A trained user encoder and how it came about."""

    model: Model


class Start(Protocol):
    """Weights that a model has before its first step, in place of random ones."""

    @property
    def adapter(self) -> Files:
        """Files of the adapter, which is trained on."""
        ...

    def apply(self, model: Model, *, ids_given: bool) -> None:
        """Put the other weights in; ``ids_given``: the id table holds another model's vectors of all items."""
        ...


@dataclass(frozen=True)
class FitOptions:
    """Options of a run that are not part of the recipe.

    Attributes:
        work: folder of checkpoints and TensorBoard logs; an interrupted run resumes from it.
        minutes: stop after this training time and keep the best epoch so far; None: the rest of the run's budget.
        share: fraction of the rest of the run's budget to use.
        epochs: train for exactly this many epochs without selecting one (a refit); None: select on validation.
        cache: folder of results that other runs can reuse; None: in ``work``.
        anchor_ND: initial id table.
        history_state: id model that a gated adapter reads.
        start: initial weights; None: random.
        follow: called with the step and the figures that a `Trainer` logs; None: not called.
    """

    work: Path
    seed: int = 0
    minutes: float | None = None
    share: float = 1.0
    precision: Precision = "fp32"
    fitted_on: FittedOn = "train"
    epochs: int | None = None
    anchor_ND: NDArray[np.float32] | None = None
    cache: Path | None = None
    history_state: HistoryState | None = None
    start: Start | None = None
    follow: Callable[[int, dict[str, Any]], None] | None = None


def read_text(
    recipe: Recipe, split: Split, sources: Sources, console: Console, whitening: Whitening | None = None
) -> TextVectors | None:
    """The text tower's pass over the catalog, with a progress bar; raises `DataError` as `item_texts` does.

    ``whitening``: fitted earlier; None: fitted on this catalog.
    """
    if not recipe.needs_text_vectors:
        return None
    texts = item_texts(split.dataset, recipe.items.text_template)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"reading {len(texts)} titles ({recipe.text_backbone})", total=len(texts))
        progress = timed(bar, task, "reading titles")
        return read_titles(recipe.model_spec(), texts, sources, whitening=whitening, progress=progress)


def fit(
    recipe: Recipe,
    split: Split,
    options: FitOptions,
    objective: ObjectiveSpec,
    auxiliaries: Callable[[UserEncoder], Sequence[Auxiliary]] = lambda encoder: (),
    *,
    sources: Sources,
    text: TextVectors | None,
    console: Console,
    before: Callable[[RetrievalModule], None] = lambda module: None,
) -> Fitted:
    """Train ``recipe`` on the training part of ``split``; the best epoch on validation is kept.

    ``before`` is called with the module before its training: stages that change it.
    ``auxiliaries`` makes the losses beside the objective for the encoder that is trained.
    """
    set_seed(options.seed)
    model = build_model(
        recipe.model_spec(),
        catalog_size=split.dataset.n_items,
        titles=split.dataset.titles if recipe.history.reads_tokens or recipe.items.words else None,
        text=text,
        sources=sources,
        adapter_folder=options.start.adapter if options.start else None,
        merge=False,
    )
    if options.anchor_ND is not None:
        _start_from(model, options.anchor_ND)
    if options.start is not None:
        options.start.apply(model, ids_given=recipe.items.words or options.anchor_ND is not None)
    model.encoder.history_state = options.history_state
    module = RetrievalModule(
        model.encoder,
        objective,
        popularity_N=split.popularity(options.fitted_on),
        shares_N=target_shares(
            split.train_rows(options.fitted_on), split.dataset.n_items, recipe.optimizer.user_windows
        ),
        anchor_ND=options.anchor_ND,
        auxiliaries=auxiliaries(model.encoder),
    )
    targets = sample_targets(split.validation, VALIDATION_USERS, options.seed)

    def evaluate_now() -> dict[str, float]:
        module.settle()
        return validation_metrics(model, targets, options.seed)

    before(module)
    trained = train_module(recipe, split, options, module, evaluate_now, console=console)
    module.close()
    module.settle()
    return Fitted(model=model, **vars(trained))


def train_module(
    recipe: Recipe,
    split: Split,
    options: FitOptions,
    module: TrainedModule,
    evaluate_now: Callable[[], dict[str, float]],
    *,
    console: Console,
) -> Trained:
    """Train a module on the windows of a split; ``evaluate_now`` gives the figures that select the best epoch."""
    windows = windows_for(recipe, split, options, module)
    resume = last_complete_checkpoint(options.work)
    budget = TimeBudget(_minutes(options), resumed_from=resume)
    trainer = _trainer(recipe, options, module, windows, budget, evaluate_now)
    selected_on = f"eval_{module.selected_on}" if options.epochs is None else None
    say_progress(trainer, TrainingProgress(console, selected_on=selected_on, name=recipe.name))
    _say(console, recipe, module, windows, resume)
    with fused_rms_norms(module):
        result = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if options.epochs is not None:
        trainer.keep_average()
    history = trainer.state.log_history
    return Trained(
        epochs=float(trainer.state.epoch or 0.0),
        best_epoch=_best_epoch(history, f"eval_{module.selected_on}", float(trainer.state.epoch or 0.0)),
        steps=int(result.global_step),
        seconds=budget.seconds,
        stopped_by=_stopped_by(trainer, budget),
        losses=[float(entry["loss"]) for entry in history if "loss" in entry],
    )


def windows_for(recipe: Recipe, split: Split, options: FitOptions, module: TrainedModule) -> EpochWindows:
    """The training examples of a run."""
    return EpochWindows(
        split.train_rows(options.fitted_on),
        limit=recipe.history.limit,
        seed=options.seed,
        last_only=module.last_only,
        per_user=recipe.optimizer.user_windows,
        fixed=module.fixed_windows,
        most=module.most_windows,
    )


def _minutes(options: FitOptions) -> float | None:
    """Training time: as asked, or a share of what is left of the run's budget."""
    left = minutes_left("preparing the training")
    return options.minutes if left is None else left * options.share


def _trainer(
    recipe: Recipe,
    options: FitOptions,
    module: TrainedModule,
    windows: EpochWindows,
    budget: TimeBudget,
    evaluate_now: Callable[[], dict[str, float]],
) -> RecommenderTrainer:
    selecting = options.epochs is None
    callbacks: list[TrainerCallback] = [budget]
    if options.follow is not None:
        callbacks.append(Followed(options.follow))
    if selecting:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=recipe.optimizer.patience))
    steps = windows.batches(recipe.optimizer.positions)
    length = recipe.optimizer.average_epochs
    return RecommenderTrainer(
        module,
        _arguments(recipe, options, selecting, f"eval_{module.selected_on}"),
        windows=windows,
        optimizer=recipe.optimizer,
        evaluate_now=evaluate_now,
        callbacks=callbacks,
        average=WeightAverage(module, length * steps) if length else None,
    )


def _arguments(recipe: Recipe, options: FitOptions, selecting: bool, selected_on: str) -> TrainingArguments:
    spec = recipe.optimizer
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(options.work / "tensorboard")
    on_cpu = not torch.cuda.is_available()
    schedule = {"constant": "constant_with_warmup", "cosine": "cosine", "linear": "linear"}[spec.schedule]
    return TrainingArguments(
        output_dir=str(options.work),
        num_train_epochs=options.epochs or spec.epochs,
        per_device_train_batch_size=1,
        max_grad_norm=spec.clip,
        lr_scheduler_type=schedule,
        warmup_steps=spec.warmup,
        eval_strategy="epoch" if selecting else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=selecting,
        metric_for_best_model=selected_on,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="steps",
        logging_steps=10,
        report_to=["tensorboard"],
        seed=options.seed,
        use_cpu=on_cpu,
        bf16=options.precision == "bf16",
        ddp_backend="gloo" if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        dataloader_num_workers=0,
    )


def sample_targets(targets: Targets, most: int, seed: int) -> Targets:
    """All targets, or ``most`` of them drawn with ``seed``."""
    if len(targets) <= most:
        return targets
    chosen = np.sort(np.random.default_rng([seed, 3]).choice(len(targets), most, replace=False))
    return Targets(targets.dataset, targets.users_T[chosen], targets.positions_T[chosen])


def validation_metrics(model: Model, targets: Targets, seed: int) -> dict[str, float]:
    """NDCG@10 and Recall@10 over ``targets``, whole catalog, seen items removed."""
    encoder = model.encoder
    training = encoder.training
    encoder.eval()
    histories = list(targets.histories())
    with torch.inference_mode():
        items = encoder.items.vectors().float().cpu().numpy()
    users = encode_users(encoder, histories)
    values = question_values(rank_all(users, items, targets.rows_T, histories, seed=seed), cuts=(10,))
    encoder.train(training)
    return {name: float(values[name].mean()) for name in ("ndcg@10", "recall@10")}


def _start_from(model: Model, anchor_ND: NDArray[np.float32]) -> None:
    """Put the id model's vectors into the id table; UNKNOWN starts at their mean."""
    table = model.encoder.items.ids.weight
    expected = (model.encoder.items.size, table.shape[1])
    if anchor_ND.shape != expected:
        raise RecipeError(f"the required id model has vectors of shape {anchor_ND.shape}, this recipe needs {expected}")
    with torch.no_grad():
        table[:-1] = torch.from_numpy(anchor_ND)
        table[-1] = table[:-1].mean(0)


def _say(console: Console, recipe: Recipe, module: TrainedModule, windows: EpochWindows, resume: Path | None) -> None:
    count = sum(p.numel() for p in trainable(module).values())
    targets = sum(window.targets for window in windows.windows)
    console.print(
        f"recipe {recipe.name}: {count:,} trained weights, {len(windows):,} windows and {targets:,} targets an epoch, "
        f"at most {recipe.optimizer.epochs} epochs" + (f"; going on from {resume.name}" if resume else "")
    )


def _best_epoch(history: list[dict[str, Any]], selected_on: str, last: float) -> float:
    scored = [(entry[selected_on], -entry["epoch"]) for entry in history if selected_on in entry]
    return -max(scored)[1] if scored else last


def _stopped_by(trainer: RecommenderTrainer, budget: TimeBudget) -> str:
    if trainer.state.global_step >= trainer.state.max_steps:
        return "epochs"
    if budget.minutes is not None and budget.seconds > budget.minutes * 60:
        return "time budget"
    return "no better epoch on validation"
