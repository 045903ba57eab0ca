"""``transformers.Trainer`` for recommenders: our batches, our loss, full-ranking evaluation, small checkpoints."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling.artifact.tensor_files import save_tensors
from modeling.encoder.build import trainable
from training.loop.ema import WeightAverage
from training.loop.examples import EpochLoader, EpochWindows, LengthBatches, Window
from training.loop.module import Counted, TrainedModule
from training.recipe import OptimizerSpec, RecipeError

WEIGHTS = "trained.safetensors"
CARRIED = "carried.safetensors"
"""In a checkpoint: what a module carries from step to step beside its weights."""
Evaluate = Callable[[], dict[str, float]]


class NotFinite(RecipeError, FloatingPointError):
    """The loss is no number."""


class RecommenderTrainer(Trainer):
    """Trains a ``TrainedModule``; checkpoints hold the trained weights only (a frozen backbone is not copied).

    Args:
        model: the module.
        arguments: of the Hugging Face trainer.
        windows: training examples.
        optimizer: the recipe's slot.
        evaluate_now: validation metrics of the model as it stands, by name.
        average: the weights' running average, which is what is evaluated and kept; None keeps the plain weights.
    """

    def __init__(
        self,
        model: TrainedModule,
        arguments: TrainingArguments,
        *,
        windows: EpochWindows,
        optimizer: OptimizerSpec,
        evaluate_now: Evaluate,
        callbacks: list[TrainerCallback],
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__(
            model=model,
            args=arguments,
            callbacks=[average, *callbacks] if average else callbacks,
            data_collator=self._collate,
            train_dataset=windows,
            eval_dataset=windows,  # the Trainer wants one; `evaluate` ranks the catalog instead
        )
        self._windows = windows
        self._optimizer_spec = optimizer
        self._evaluate_now = evaluate_now
        self._average = average

    # -- batches ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> EpochLoader:
        """Our own batches, already divided among processes; the accelerator must not divide them again."""
        batches = LengthBatches(
            self._windows,
            positions=self._optimizer_spec.positions,
            seed=self.args.seed,
            rank=self.args.process_index,
            world=self.args.world_size,
            item_lengths_N=cast(TrainedModule, self.model).item_lengths_N,
        )
        loader = EpochLoader(self._windows, batch_sampler=batches, collate_fn=self._collate)
        loader.batches = batches
        return loader

    def _collate(self, windows: list[Window]) -> dict[str, Any]:
        return {"batch": cast(TrainedModule, self.model).collate(windows)}

    # -- loss -------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean over the targets of the *global* batch: processes with fewer targets weigh less, as they should."""
        batch: Counted = inputs["batch"]
        progress = self.state.global_step / max(1, self.state.max_steps)
        with self.compute_loss_context_manager():
            total = model(batch, progress)
        count = torch.tensor(float(batch.count), device=total.device)
        if self.args.world_size > 1:
            dist.all_reduce(count)
        loss = total / count * self.args.world_size
        if not torch.isfinite(loss):
            step = self.state.global_step
            advice = (
                "lower optimizer.rate" if step else "nothing was learned yet, so the data or the weights are not finite"
            )
            raise NotFinite(f"the loss is {float(loss)} at step {step}: {advice}")
        return (loss, None) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with one rate for the backbone and its adapter, another for the rest; no decay on biases and norms."""
        if self.optimizer is None:
            spec = self._optimizer_spec
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            module = cast(TrainedModule, self.model)
            for name, parameter in trainable(module).items():
                rate = spec.backbone_rate if module.pretrained(name) else spec.rate
                decay = spec.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
                betas=(0.9, 0.98),
            )
        return self.optimizer

    # -- evaluation -------------------------------------------------------------------------------------------------

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Full ranking on validation."""
        with self._average.applied() if self._average else contextlib.nullcontext():
            values = self._evaluate_now()
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def keep_average(self) -> None:
        """End of a run that selects no epoch: the average is the result."""
        if self._average:
            self._average.apply()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or cast(str, self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        module = cast(TrainedModule, self.model)
        save_tensors(trainable(module), folder / WEIGHTS)
        if carried := module.carried():
            save_tensors(carried, folder / CARRIED)
        if self._average:
            self._average.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        module = cast(TrainedModule, model or self.model)
        load_trained(module, Path(resume_from_checkpoint))
        if (file := Path(resume_from_checkpoint) / CARRIED).exists():
            module.carry(load_file(file))
        if self._average:
            self._average.load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        best = Path(cast(str, self.state.best_model_checkpoint))
        load_trained(cast(nn.Module, self.model), best)
        if self._average:
            self._average.load(best)
            self._average.apply()


def load_trained(model: nn.Module, checkpoint: Path) -> None:
    """Copy the trained weights of a checkpoint into ``model``.

    Raises:
        RecipeError: the checkpoint is of another recipe (other names or shapes).
    """
    saved, current = load_file(checkpoint / WEIGHTS), trainable(model)
    if saved.keys() != current.keys() or any(saved[name].shape != current[name].shape for name in saved):
        odd = sorted(saved.keys() ^ current.keys())[:2] or [n for n in saved if saved[n].shape != current[n].shape][:2]
        raise RecipeError(
            f"checkpoint {checkpoint.name} was made by another recipe or data set (first difference: {odd[0]}); "
            "choose another --out or remove its work folder"
        )
    with torch.no_grad():
        for name, parameter in current.items():
            parameter.copy_(saved[name])


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end: the two files looked for are the last ones written."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[-1]), reverse=True)
    for checkpoint in found:
        try:
            for name in ("trainer_state.json", TimeBudget.FILE):
                json.loads((checkpoint / name).read_text())
        except (OSError, json.JSONDecodeError):
            continue
        return checkpoint
    return None


class TimeBudget(TrainerCallback):
    """Ends training after ``minutes`` of training time, counted over restarts; then the best checkpoint is taken.

    Also asks for a checkpoint whenever ``save_every`` seconds have passed without one.
    """

    FILE = "seconds.json"

    def __init__(self, minutes: float | None = None, *, save_every: float = 540.0, resumed_from: Path | None) -> None:
        self.minutes = minutes
        self.save_every = save_every
        self._spent = float(json.loads((resumed_from / self.FILE).read_text())) if resumed_from else 0.0
        self._started = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far, restarts included."""
        return self._spent + time.monotonic() - self._started

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop or save when it is time."""
        if self.minutes is not None and self.seconds > self.minutes * 60:
            control.should_training_stop = control.should_save = True
            control.should_evaluate = args.eval_strategy != "no"  # nothing is selected in a refit or a warm-up
        elif time.monotonic() - self._saved > self.save_every:
            control.should_save = True

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint was written: note the time in it."""
        self._saved = time.monotonic()
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if folder.is_dir():
            (folder / self.FILE).write_text(json.dumps(self.seconds))
