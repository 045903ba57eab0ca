"""Runs in MLflow (`mlflow-skinny`, extra `mlflow`): a tracking server, or a folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from training.recipe import RecipeError
from training.run_logs.base import PROJECT, RunLog

LONGEST_VALUE = 6000  # of a parameter, in characters: MLflow's limit
MOST_AT_ONCE = 100  # parameters of one call: MLflow's limit


def _named(metric: str) -> str:
    """The name as MLflow takes it, which has no "@": ndcg_at_10."""
    return metric.replace("@", "_at_")


class MlflowLog(RunLog):
    """Parameters, figures by step and tags of one run, written through `MlflowClient`."""

    allowed = "the tracking URI, as mlflow:http://host:5000 or mlflow:file:///runs; without one MLflow's own choice"

    def __init__(self, where: str, name: str, facts: Mapping[str, str]) -> None:
        try:
            from mlflow import MlflowClient, entities, exceptions
        except ImportError as error:
            raise RecipeError("--log mlflow needs MLflow: install anyo with the extra 'mlflow'") from error
        self._entities: Any = entities
        try:
            self._client: Any = MlflowClient(tracking_uri=where or None)
            found = self._client.get_experiment_by_name(PROJECT)
            experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
            self._run: str = self._client.create_run(experiment, run_name=name).info.run_id
        except exceptions.MlflowException as error:
            raise RecipeError(f"--log mlflow:{where}: {str(error).splitlines()[0]}") from error
        parameters = [entities.Param(key, value[:LONGEST_VALUE]) for key, value in facts.items()]
        for start in range(0, len(parameters), MOST_AT_ONCE):
            self._client.log_batch(self._run, params=parameters[start : start + MOST_AT_ONCE])

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of a step."""
        now = int(1000 * time.time())
        metrics = [self._entities.Metric(_named(key), value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def finish(self, facts: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Write the result and end the run."""
        now = int(1000 * time.time())
        self._client.log_batch(
            self._run,
            metrics=[self._entities.Metric(_named(key), value, now, 0) for key, value in metrics.items()],
            tags=[self._entities.RunTag(key, value) for key, value in facts.items()],
        )
        self._client.set_terminated(self._run, status="FINISHED")

    def fail(self, reason: str) -> None:
        """End the run as failed, with the reason as a tag."""
        self._client.set_tag(self._run, "error", reason)
        self._client.set_terminated(self._run, status="FAILED")
