"""Runs in trackers beside the artifact's own record: ``train --log NAME[:WHERE]``.

To add a tracker: a subclass of `RunLog` in a module of this package, and its name in `KINDS`.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from training.recipe import Recipe, RecipeError
from training.run_logs.base import RunLog
from training.run_logs.mlflow_log import MlflowLog
from training.run_logs.wandb_log import WandbLog

__all__ = ["KINDS", "Figures", "RunLog", "facts_of", "recorded"]

KINDS: dict[str, type[RunLog]] = {"mlflow": MlflowLog, "wandb": WandbLog}
Figures = Callable[[int, Mapping[str, float]], None]


def facts_of(recipe: Recipe, **more: object) -> dict[str, str]:
    """Return every setting of a recipe as ``slot.field`` → text, and what else is given."""
    found = {"recipe": recipe.name}
    for slot, value in recipe.model_dump(mode="json").items():
        found |= {f"{slot}.{field}": str(each) for field, each in value.items()} if isinstance(value, dict) else {}
    return found | {key: str(value) for key, value in more.items() if value is not None}


def _open(asked: str, name: str, facts: Mapping[str, str]) -> RunLog:
    kind, _, where = asked.partition(":")
    if kind not in KINDS:
        raise RecipeError(f"--log {asked!r} is not known; known are {', '.join(KINDS)}")
    return KINDS[kind](where, name, facts)


class Record:
    """A run in all trackers that were asked for; does nothing in a process that is not the first one."""

    def __init__(self, logs: Sequence[RunLog]) -> None:
        self._logs = logs

    def figures(self, step: int, values: Mapping[str, object]) -> None:
        """Hand on the figures of a step that are finite numbers, without the prefix that a Trainer gives."""
        kept = {
            key.removeprefix("eval_"): float(each)
            for key, each in values.items()
            if isinstance(each, int | float) and math.isfinite(each)
        }
        for log in self._logs if kept else ():
            log.figures(step, kept)

    def finish(self, facts: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """End the run as finished in all trackers."""
        while self._logs:
            log, *self._logs = self._logs
            log.finish(facts, metrics)

    def fail(self, reason: str) -> None:
        """End what has not ended as failed."""
        for log in self._logs:
            log.fail(reason)


@contextlib.contextmanager
def recorded(asked: Sequence[str], name: str, facts: Mapping[str, str]) -> Iterator[Record]:
    """Record what happens inside; an exception, or an end without `Record.finish`, ends the run as failed.

    Args:
        asked: ``NAME`` or ``NAME:WHERE`` of each tracker.
        name: of the run.
        facts: what it is asked for.

    Raises:
        RecipeError: a tracker is not known, or cannot be used.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    record = Record([])
    try:
        record = Record([_open(each, name, facts) for each in asked] if first else [])
        yield record
    except BaseException as error:
        record.fail(f"{type(error).__name__}: {error}"[:500])
        raise
    record.fail("it ended without a result")
