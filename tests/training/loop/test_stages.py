"""Stages run in order, each once: a run that is started again restores what has ended and goes on with the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from modeling.encoder.build import Model, build_model
from testing.datasets import write_dataset
from training.data.dataset import Dataset, read_dataset
from training.data.splits import leave_one_out
from training.loop.fit import FitOptions, validation_metrics
from training.loop.module import RetrievalModule
from training.loop.stages import ModuleStage, run_stages
from training.recipes import RecipeError, get_recipe

QUIET = Console(quiet=True)
SMALL = ["items.dim=32", "backbone.width=32", "backbone.dropout=0.0", "history.dropout=0.0", "optimizer.positions=50"]


class Killed(Exception):
    """Stands for a signal."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("ring"), users=24, items=20))


class _DyingStage(ModuleStage):
    def run(self, work: Path) -> dict[str, Any]:
        raise Killed


def stages_of(dataset: Dataset, work: Path, *, dies: bool = False) -> tuple[Model, list[ModuleStage]]:
    """A contrastive warm-up, then the main stage, over one model."""
    torch.manual_seed(0)
    recipe, split = get_recipe("sasrec", [*SMALL, "optimizer.epochs=2"]), leave_one_out(dataset)
    model = build_model(recipe.model_spec(), catalog_size=dataset.n_items)
    stages = []
    for name, kind in (("warm-up", "in_batch"), ("main", "full")):
        objective = recipe.method.objective.model_copy(update={"kind": kind})
        module = RetrievalModule(model.encoder, objective, popularity_N=split.popularity())
        make = _DyingStage if dies and name == "main" else ModuleStage
        stages.append(
            make(
                name, kind, module, recipe, split, FitOptions(work=work, epochs=2),
                lambda: validation_metrics(model, split.validation, 0), QUIET,
            )
        )  # fmt: skip
    return model, stages


def weights(model: Model) -> np.ndarray:
    return model.encoder.items.ids.weight.detach().numpy().copy()


def test_a_killed_run_goes_on_with_the_stage_that_was_cut_and_ends_the_same(dataset: Dataset, tmp_path: Path) -> None:
    whole, stages = stages_of(dataset, tmp_path / "whole")
    begun = weights(whole)
    reports = run_stages(stages, tmp_path / "whole", QUIET)
    assert list(reports) == ["warm-up", "main"]
    assert [report["objective"] for report in reports.values()] == ["in_batch", "full"]

    killed, dying = stages_of(dataset, tmp_path / "killed", dies=True)
    with pytest.raises(Killed):
        run_stages(dying, tmp_path / "killed", QUIET)
    warm = weights(killed)
    assert np.abs(warm - begun).max() > 1e-3

    again, stages = stages_of(dataset, tmp_path / "killed")
    stages[0].run = None  # type: ignore[assignment,method-assign]
    assert run_stages(stages, tmp_path / "killed", QUIET)["main"]["steps"] == reports["main"]["steps"]
    np.testing.assert_allclose(weights(again), weights(whole), atol=1e-6)
    assert np.abs(weights(again) - warm).max() > 1e-3

    ended, stages = stages_of(dataset, tmp_path / "killed")
    found = run_stages(stages, tmp_path / "killed", QUIET)
    assert found == run_stages(stages, tmp_path / "killed", QUIET)
    np.testing.assert_array_equal(weights(ended), weights(again))


def test_names_are_folders_so_each_is_its_own(dataset: Dataset, tmp_path: Path) -> None:
    _, stages = stages_of(dataset, tmp_path)
    with pytest.raises(RecipeError, match="names of their own: main, main"):
        run_stages([stages[1], stages[1]], tmp_path, QUIET)
