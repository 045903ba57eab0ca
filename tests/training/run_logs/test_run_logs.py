"""Runs in trackers: a real training in a real MLflow on a folder, and Weights & Biases through a stand-in."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from testing.datasets import SMALL, write_dataset
from training.cli import app
from training.recipe import RecipeError
from training.run_logs import recorded

FACTS = {"recipe": "sasrec", "optimizer.epochs": "2"}


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", users=24, items=20)


def train(data: Path, out: Path, *more: str) -> Any:
    command = ["train", "sasrec", "--data", str(data), "--out", str(out), "--seed", "3", "--json"]
    small = [each for each in SMALL if "positions" not in each]
    small += ["optimizer.epochs=2", "optimizer.positions=10"]  # a loss is logged every ten steps
    return CliRunner().invoke(app, [*command, *(word for each in small for word in ("--set", each)), *more])


def test_a_training_is_in_mlflow_with_its_settings_figures_and_result(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as its error says
    uri = f"file://{tmp_path}/runs"
    done = train(small_folder, tmp_path / "shop", "--log", f"mlflow:{uri}")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("anyo").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "shop"
    assert run.data.params["optimizer.epochs"] == "2" and run.data.params["seed"] == "3"
    assert run.data.tags["version"] == said["version"]
    assert run.data.metrics["validation_ndcg_at_10"] == pytest.approx(said["ndcg@10"]["value"])
    epochs = client.get_metric_history(run.info.run_id, "ndcg_at_10")
    assert [each.step for each in epochs] == sorted({each.step for each in epochs}) and len(epochs) == 2
    assert client.get_metric_history(run.info.run_id, "loss")

    refused = train(small_folder, tmp_path / "other", "--log", f"mlflow:{uri}", "--teacher", str(tmp_path / "none"))
    assert refused.exit_code == 2
    failed = client.search_runs([run.info.experiment_id], "attributes.status = 'FAILED'")
    assert len(failed) == 1 and "teacher" in failed[0].data.tags["error"]


class FakeWandb:
    """What anyo uses of the public API of wandb: `init`, and of the run `log`, `summary.update`, `finish`."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}
        self.code: int | None = None

    def init(self, **asked: Any) -> Any:
        self.asked = asked
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int = 0) -> None:
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_is_in_wandb_with_its_settings_figures_and_result(wandb: FakeWandb) -> None:
    with recorded(["wandb:offline"], "shop", FACTS) as record:
        record.figures(10, {"loss": 2.5, "eval_ndcg@10": 0.1, "note": "text", "grad_norm": float("nan")})
        record.finish({"version": "abc"}, {"validation_ndcg@10": 0.2})
    assert wandb.asked == {"project": "anyo", "name": "shop", "config": FACTS, "mode": "offline"}
    assert wandb.logged == [(10, {"loss": 2.5, "ndcg@10": 0.1})]
    assert wandb.summary == {"version": "abc", "validation_ndcg@10": 0.2} and wandb.code == 0


@pytest.mark.parametrize("how", ["raised", "no result"])
def test_a_run_without_a_result_is_marked_as_failed(wandb: FakeWandb, how: str) -> None:
    with (
        pytest.raises(KeyboardInterrupt) if how == "raised" else contextlib.nullcontext(),
        recorded(["wandb"], "x", FACTS),
    ):
        if how == "raised":
            raise KeyboardInterrupt
    assert wandb.code == 1 and wandb.summary["error"]
    assert "mode" not in wandb.asked


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("tensorboard", "known are mlflow, wandb"),
        ("wandb:http://host", "offline"),
        ("wandb", "pip install wandb"),
        ("mlflow", "extra 'mlflow'"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_with_what_to_do(
    asked: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeError, match=said), recorded([asked], "x", FACTS):
        pass
