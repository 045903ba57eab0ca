"""What an artifact was trained on is compared with what is asked of it, wherever a figure would look honest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from modeling.artifact.manifest import MANIFEST, ArtifactError, read_manifest, sealed
from modeling.methods.base_generative import load_generative
from testing.datasets import SMALL, ring_dataset, trained_sasrec
from testing.models import backbone_folder
from training.compare import evaluate_artifact
from training.data.dataset import Dataset
from training.methods.bigrec_reweigh import reweigh
from training.recipes import Recipe, RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
WRITER = ["history.title_tokens=6", "method.validation_users=32", "optimizer.positions=60", "optimizer.epochs=1"]
OTHER: dict[str, tuple[dict[str, Any], str]] = {
    "recipe": ({"recipe": "anyo"}, "holds recipe 'anyo', and 'sasrec' is required"),
    "data": ({"data_sha256": "0" * 64}, "was trained on other data"),
    "split": ({"split": "global-time 0.8/0.1/0.1"}, "was trained on split 'global-time 0.8/0.1/0.1', and this is"),
    "ties": ({"training": {"ties": "shuffled with seed 3"}}, "was trained with ties 'shuffled with seed 3'"),
    "fitted_on": ({"fitted_on": "train+validation"}, r"fitted on train\+validation: validation was trained on"),
}
"""Fields of a manifest, as they are not allowed to be, and what is said of them."""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def sasrec(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_sasrec(ring, tmp_path_factory.mktemp("artifacts"))


@pytest.fixture(scope="module")
def bigrec(
    ring: Dataset, sasrec: Path, backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "bigrec"
    recipe = get_recipe("bigrec", [*WRITER, "requires=sasrec"], backbone=str(backbone_folder("qwen3")))
    run(recipe, ring, RunOptions(out=out, id_model=sasrec), QUIET)
    return out


def altered(folder: Path, to: Path, **fields: Any) -> Path:
    """A copy of an artifact whose manifest says something else."""
    shutil.copytree(folder, to)
    manifest = read_manifest(folder)
    fields = {name: {**manifest.training, **value} if name == "training" else value for name, value in fields.items()}
    (to / MANIFEST).write_text(sealed(manifest.model_copy(update=fields)))
    return to


def building_on_sasrec(name: str, backbone_folder: Callable[[str], Path]) -> Recipe:
    if name == "sasrec":
        return get_recipe("sasrec", [*SMALL, "optimizer.epochs=1", "method.objective.pull=0.1", "requires=sasrec"])
    more = ["method.candidates=4"] if name == "llara" else []
    return get_recipe(name, [*WRITER, *more, "requires=sasrec"], backbone=str(backbone_folder("qwen3")))


@pytest.mark.parametrize("name", ["bigrec", "llara", "sasrec"])
@pytest.mark.parametrize("what", OTHER)
def test_an_id_model_that_may_have_seen_the_answers_is_refused(
    what: str, name: str, ring: Dataset, sasrec: Path, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    fields, message = OTHER[what]
    folder = altered(sasrec, tmp_path / "other", **fields)
    with pytest.raises(ValueError, match=message) as refused:
        run(
            building_on_sasrec(name, backbone_folder),
            ring,
            RunOptions(out=tmp_path / "out", id_model=folder),
            QUIET,
        )
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_an_id_model_that_a_recipe_does_not_read_is_refused(ring: Dataset, sasrec: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"builds on no other model: --id-model .* has no effect"):
        run(get_recipe("sasrec", SMALL), ring, RunOptions(out=tmp_path / "out", id_model=sasrec), QUIET)


def test_an_id_model_is_noted_and_a_run_on_another_one_does_not_resume(
    ring: Dataset, sasrec: Path, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = building_on_sasrec("sasrec", backbone_folder)
    names = set()
    for version in ("1" * 64, "2" * 64):
        folder = altered(sasrec, tmp_path / version, version=version)
        done = run(recipe, ring, RunOptions(out=tmp_path / "out", id_model=folder, keep_work=True), QUIET)
        assert done.manifest.training["id_model"] == {"recipe": "sasrec", "version": version}
        names |= {path.name for path in tmp_path.glob(".out.training-*")}
    assert len(names) == 2


@pytest.mark.parametrize("what", ["data", "split", "ties", "fitted_on"])
def test_weights_are_chosen_anew_with_nothing_that_has_seen_validation(
    what: str, ring: Dataset, sasrec: Path, bigrec: Path, tmp_path: Path
) -> None:
    fields, message = OTHER[what]
    other = altered(sasrec, tmp_path / "other", **fields)
    with pytest.raises(ArtifactError, match=message):
        reweigh(bigrec, ring, tmp_path / "out", collaborative=other, seed=0, console=QUIET)
    if what != "split":  # the writer's own split is the one that is used
        with pytest.raises(ArtifactError, match=message.split(":")[0]):
            writer = altered(bigrec, tmp_path / "writer", **fields)
            reweigh(writer, ring, tmp_path / "out", collaborative=sasrec, seed=0, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_validation_is_not_asked_of_what_holds_a_model_that_has_seen_it(
    ring: Dataset, bigrec: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "writer"
    shutil.copytree(bigrec, folder)
    inside = folder / "parts" / "collaborative"
    shutil.rmtree(inside)
    altered(bigrec / "parts" / "collaborative", inside, fitted_on="train+validation")
    with pytest.raises(ArtifactError, match=r"holds a collaborative model that was fitted on train\+validation"):
        evaluate_artifact(folder, ring, "validation", seed=0, ledger=False, console=QUIET)


def test_a_refit_keeps_what_was_chosen_before_it_saw_validation(
    ring: Dataset, backbone_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modeling.methods.bigrec import BigRecGenerator, Exponents

    chosen: list[Exponents] = []

    def choose(writer: BigRecGenerator, *rest: Any, **options: Any) -> dict[str, Any]:
        chosen.append(Exponents(0.5 + len(chosen), 0.0))
        writer.exponents = chosen[-1]
        return {"exponents": {"call": len(chosen)}}

    monkeypatch.setattr("training.methods.bigrec.choose_exponents", choose)
    recipe = get_recipe("bigrec", WRITER, backbone=str(backbone_folder("qwen3")))
    result = run(recipe, ring, RunOptions(out=tmp_path / "out", refit=True), QUIET)
    manifest = result.manifest
    assert manifest.fitted_on == "train+validation" and manifest.method.record["popularity_exponent"] == 0.5
    assert len(chosen) == 1 and manifest.training["exponents"] == {"call": 1}
    artifact = load_generative(tmp_path / "out", np.arange(ring.n_items))
    assert isinstance(artifact.model, BigRecGenerator) and artifact.model.exponents == chosen[0]
