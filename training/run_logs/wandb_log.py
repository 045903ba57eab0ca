"""Runs in Weights & Biases (`wandb`, which is not among anyo's extras: its client is installed by who uses it)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.recipe import RecipeError
from training.run_logs.base import PROJECT, RunLog

OFFLINE = "offline"


class WandbLog(RunLog):
    """Configuration, figures by step and summary of one run, through `wandb.init` and the run it returns."""

    allowed = "offline (written to ./wandb, sent later with `wandb sync`), or nothing"

    def __init__(self, where: str, name: str, facts: Mapping[str, str]) -> None:
        if where not in ("", OFFLINE):
            raise RecipeError(f"--log wandb:{where} is not allowed; after the colon: {self.allowed}")
        try:
            import wandb
        except ImportError as error:
            raise RecipeError("--log wandb needs Weights & Biases: pip install wandb") from error
        mode = {"mode": OFFLINE} if where else {}
        try:
            self._run: Any = wandb.init(project=PROJECT, name=name, config=dict(facts), **mode)
        except wandb.Error as error:
            raise RecipeError(f"--log wandb: {str(error).splitlines()[0]}") from error

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Write figures of a step."""
        self._run.log(dict(values), step=step)

    def finish(self, facts: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Write the result and end the run."""
        self._run.summary.update({**facts, **metrics})
        self._run.finish()

    def fail(self, reason: str) -> None:
        """End the run as failed."""
        self._run.summary.update({"error": reason})
        self._run.finish(exit_code=1)
