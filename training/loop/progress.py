"""Training as a person reads it: one line that moves on a terminal, one line an epoch elsewhere; on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainerControl, TrainerState

REFRESH_S = 1.0


class Followed(TrainerCallback):
    """Hands what a `Trainer` logs (loss, learning rate, validation) to a function, with the step."""

    def __init__(self, follow: Callable[[int, dict[str, Any]], None]) -> None:
        self._follow = follow

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Hand on what was logged."""
        if state.is_world_process_zero:
            self._follow(state.global_step, logs or {})


class TrainingProgress(TrainerCallback):
    """Says epoch, step, loss, the figure that selects the best epoch, the best so far and the time left.

    Args:
        console: where to.
        selected_on: name of that figure in the evaluation's metrics; None where nothing is selected.
        name: what is trained.
    """

    def __init__(self, console: Console, *, selected_on: str | None, name: str = "training") -> None:
        self._console, self._selected_on, self._name = console, selected_on, name
        self._bar: Progress | None = None
        self._task: Any = None
        self._loss = self._best = self._shown = 0.0
        self._best_epoch = 0.0
        self._started, self._first_step = time.monotonic(), 0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Start the clock and, on a terminal, the moving line."""
        self._started, self._first_step = time.monotonic(), state.global_step
        if self._console.is_terminal and state.is_world_process_zero:
            text = TextColumn("{task.description}", markup=False)
            self._bar = Progress(text, BarColumn(20), console=self._console, transient=True)
            self._task = self._bar.add_task(self._name, total=state.max_steps)
            self._bar.start()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the line."""
        if self._bar is not None and time.monotonic() - self._shown > REFRESH_S:
            self._shown = time.monotonic()
            self._bar.update(self._task, completed=state.global_step, description=self._line(state))

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Keep the last loss."""
        self._loss = float((logs or {}).get("loss", self._loss))

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Say how the epoch went."""
        value = (metrics or {}).get(self._selected_on or "")
        if value is None or not state.is_world_process_zero:
            return
        epoch = float(state.epoch or 0.0)
        if value > self._best or not self._best_epoch:
            self._best, self._best_epoch = value, epoch
        figure = (self._selected_on or "").removeprefix("eval_")
        self._console.print(
            f"{self._line(state)}; validation {figure} {value:.4f}, best {self._best:.4f} (epoch {self._best_epoch:g})",
            markup=False,
            highlight=False,
        )

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the moving line."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, state: TrainerState) -> str:
        done = state.global_step - self._first_step
        left = (time.monotonic() - self._started) / max(1, done) * (state.max_steps - state.global_step)
        epochs = f"epoch {float(state.epoch or 0.0):.4g} of at most {state.num_train_epochs:g}"
        steps = f"step {state.global_step:,} of {state.max_steps:,}"
        return f"{self._name}: {epochs}, {steps}, loss {self._loss:.4f}, at most {_minutes(left)} left"


def say_progress(trainer: Trainer, progress: TrainingProgress) -> None:
    """Let ``progress`` speak for ``trainer`` instead of the library's dictionaries."""
    for other in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(other)
    trainer.add_callback(progress)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
