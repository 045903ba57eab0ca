"""The newest items alone are trained before the network, which then starts from a user vector that is theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from modeling.encoder.build import Sources, build_model, trainable
from testing.datasets import write_dataset
from training.adaptation.warm_up import warm_up
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out
from training.loop import fit as fitting
from training.loop.fit import FitOptions
from training.loop.module import RetrievalModule
from training.methods.base import Job
from training.methods.dense import DenseTraining
from training.recipes import RecipeError, get_recipe

QUIET = Console(quiet=True)
SMALL = [
    "items.dim=32", "backbone.width=32", "backbone.dropout=0.0", "history.dropout=0.0", "projector.kind=linear",
    "projector.residual=true", "projector.recent=4", "projector.dropout=0.0", "optimizer.positions=50",
    "optimizer.epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("ring"), users=24, items=20))


def test_items_learn_without_the_network_and_users_are_their_newest_items(dataset: Dataset, tmp_path: Path) -> None:
    recipe, split = get_recipe("sasrec", SMALL), leave_one_out(dataset)
    model = build_model(recipe.model_spec(), catalog_size=dataset.n_items)
    module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=split.popularity())
    begun = {name: weight.detach().clone() for name, weight in trainable(module).items()}
    reports = warm_up(recipe, split, FitOptions(work=tmp_path), module, 2, QUIET)
    assert reports["newest-items"]["epochs"] == 2
    moved = {name for name, weight in trainable(module).items() if not torch.equal(weight, begun[name])}
    assert {"encoder.items.ids.weight", "encoder.projector.newest_weight"} <= moved
    assert not any(name.startswith("encoder.backbone.") for name in moved)

    encoder = model.encoder.eval()
    recent_PR = torch.tensor([[3, 2, -1, -1], [7, 6, 5, 4]])
    states_PH = torch.randn(2, 32)
    with torch.no_grad():
        assert torch.equal(encoder.project(states_PH, recent_PR), encoder.project(None, recent_PR))


def test_a_run_that_was_killed_in_its_main_training_does_not_repeat_the_stage(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = get_recipe("sasrec", [*SMALL, "method.warm_up=2"])

    def training() -> DenseTraining:
        return DenseTraining(Job(recipe=recipe, split=leave_one_out(dataset), sources=Sources(), console=QUIET))

    whole = training()
    whole.fit(FitOptions(work=tmp_path / "whole"))

    killed = training()
    train: Callable[..., object] = fitting.train_module
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "train_module", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            killed.fit(FitOptions(work=tmp_path / "killed"))
    assert train is fitting.train_module
    ended = tmp_path / "killed" / "stages" / "newest-items" / "done.json"
    written = ended.stat().st_mtime_ns

    again = training()
    again.fit(FitOptions(work=tmp_path / "killed"))
    assert ended.stat().st_mtime_ns == written
    assert again.report["stages"] == whole.report["stages"] | {
        "newest-items": whole.report["stages"]["newest-items"]
        | {"seconds": again.report["stages"]["newest-items"]["seconds"]}
    }
    assert whole.fitted is not None and again.fitted is not None
    table = [run.fitted.model.encoder.items.ids.weight for run in (whole, again)]
    assert torch.equal(*table)


def test_a_warm_up_without_time_ends_early_and_the_training_follows(dataset: Dataset, tmp_path: Path) -> None:
    recipe, split = get_recipe("sasrec", SMALL), leave_one_out(dataset)
    model = build_model(recipe.model_spec(), catalog_size=dataset.n_items)
    module = RetrievalModule(model.encoder, recipe.method.objective, popularity_N=split.popularity())
    report = warm_up(recipe, split, FitOptions(work=tmp_path, minutes=1e-6), module, 50, QUIET)["newest-items"]
    assert report["stopped_by"] == "time budget" and report["epochs"] < 50
    assert module.network


@pytest.mark.parametrize(
    "settings",
    [["projector.residual=false", "projector.recent=1"], ["projector.kind=identity"]],
    ids=["alone", "identity"],
)
def test_a_warm_up_of_nothing_is_refused(settings: list[str]) -> None:
    with pytest.raises(RecipeError, match=r"method\.warm_up"):
        get_recipe("sasrec", [*SMALL, *settings, "method.warm_up=2"])
