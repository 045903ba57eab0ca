"""training/loop/ema.py: the average is the one it claims to be, training goes on from the plain weights, and what is
kept is what was evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from modeling.encoder.build import Sources
from testing.datasets import QUIET, SMALL, write_dataset
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out
from training.loop.ema import WeightAverage
from training.loop.fit import FitOptions, fit, validation_metrics
from training.recipes import get_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("ring")))


def _steps(average: WeightAverage, weight: nn.Parameter, values: list[float], first: int = 1) -> None:
    for step, value in enumerate(values, first):
        weight.data.fill_(value)
        average.on_step_end(None, SimpleNamespace(global_step=step), None)  # type: ignore[arg-type]


def _averaged(average: WeightAverage, model: nn.Linear) -> float:
    with average.applied():
        return model.weight.item()


def test_the_mean_at_first_and_an_exponential_average_later() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, horizon=4)
    _steps(average, model.weight, [1.0, 2.0, 6.0])
    assert _averaged(average, model) == pytest.approx(3.0), "the mean of the steps so far, initial weights left out"
    assert model.weight.item() == 6.0, "training goes on from the plain weights"
    _steps(average, model.weight, [7.0, 8.0], first=4)
    assert _averaged(average, model) == pytest.approx(0.75 * (0.75 * 3.0 + 0.25 * 7.0) + 0.25 * 8.0)


def test_the_average_goes_where_the_model_went() -> None:
    """The trainer moves the model to its GPU after the average was made; here, to where no values are."""
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, horizon=4)
    model.to("meta")
    average._current = dict(model.named_parameters())  # on a GPU these are the same objects; on "meta" they are not
    average.on_train_begin(None, SimpleNamespace(), None)  # type: ignore[arg-type]
    _steps(average, model.weight, [1.0])
    with average.applied():
        assert model.weight.is_meta


def test_an_average_survives_its_file(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, horizon=4)
    _steps(average, model.weight, [1.0, 2.0, 6.0])
    average.save(tmp_path)
    other = WeightAverage(model, horizon=4)
    other.load(tmp_path)
    assert _averaged(other, model) == pytest.approx(3.0)


@pytest.mark.parametrize("epochs", [None, 3])
def test_what_is_kept_is_the_average_that_was_evaluated(dataset: Dataset, tmp_path: Path, epochs: int | None) -> None:
    """Selected on validation, the kept model has the very figure it was selected by; in a refit it is the average
    at the end, and in both cases not the plain weights."""
    settings = [*SMALL, "optimizer.epochs=3", "optimizer.rate=0.01", "optimizer.average_epochs=2"]
    recipe, split = get_recipe("sasrec", settings), leave_one_out(dataset)
    options = FitOptions(work=tmp_path / "work", epochs=epochs)
    fitted = fit(recipe, split, options, recipe.method.objective, sources=Sources(), text=None, console=QUIET)
    kept = dict(fitted.model.encoder.named_parameters())
    checkpoint = tmp_path / "work" / f"checkpoint-{fitted.steps}"
    if epochs is None:
        best = json.loads((checkpoint / "trainer_state.json").read_text())
        checkpoint = Path(best["best_model_checkpoint"])
        assert validation_metrics(fitted.model, split.validation, 0)["ndcg@10"] == pytest.approx(best["best_metric"])
        assert best["best_metric"] == max(entry.get("eval_ndcg@10", 0) for entry in best["log_history"])
    from safetensors.torch import load_file

    plain, averaged = load_file(checkpoint / "trained.safetensors"), load_file(checkpoint / WeightAverage.FILE)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor.detach(), averaged[f"encoder.{name}"], rtol=0, atol=0)
    assert any(not torch.equal(plain[name], averaged[name]) for name in plain)
