"""E4SRec: the item vectors stay those of the `sasrec`, the head is searched as it was trained, in all four forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file

from modeling.encoder.build import build_model
from modeling.methods.dense import Artifact, load_artifact
from testing.models import HIDDEN, backbone_folder
from training.data.dataset import Dataset
from training.loop.examples import Window
from training.loop.module import RetrievalModule
from training.methods.dense import DenseSettings
from training.recipes import RecipeError, get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

QUIET = Console(quiet=True)
SHORT = ["optimizer.epochs=1", "optimizer.positions=150"]
FREE = ["items.frozen=false", "requires="]
FORMS = {
    "untied": ["items.dim=32"],
    "tied": ["items.dim=32", "items.untied=false", "projector.kind=linear"],
    "titles": [*FREE, "history.form=text", "history.title_tokens=4", "history.limit=5"],
    "words": [*FREE, "items.words=true", "items.untied=false"],
}
WIDTH = {"untied": HIDDEN, "tied": 32, "titles": HIDDEN, "words": HIDDEN}
Load = Callable[[str], Artifact]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_stored_and_answers_as_it_was_trained(
    form: str, ring: Dataset, sasrec: Path, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = get_recipe("e4srec", [*SHORT, *FORMS[form]], backbone=str(backbone_folder("qwen3")))
    run(recipe, ring, RunOptions(out=tmp_path / form, id_model=sasrec if recipe.requires else None), QUIET)
    artifact = load_artifact(tmp_path / form)  # compares item vectors and golden histories
    assert artifact.item_vectors_ND.shape == (20, WIDTH[form]) and not recipe.projector.residual
    stored = load_file(tmp_path / form / "parts" / "items.safetensors")
    if recipe.requires:
        given = load_file(sasrec / "parts" / "items.safetensors")["ids.weight"]
        np.testing.assert_array_equal(stored["ids.weight"][:-1], given[:-1])
    assert ("outputs.weight" in stored) == recipe.items.untied
    encoder = artifact.encoder
    vectors = encoder.encode([encoder.prepare(history) for history in ([1, 2, 3], [2, 1, 3], [1, 4, 3])])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-5, "order counts"
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-5, "every item counts"


def test_the_loss_starts_near_that_of_a_guess(backbone_folder: Callable[[str], Path]) -> None:
    torch.manual_seed(0)
    recipe = get_recipe("e4srec", ["items.dim=32"], backbone=str(backbone_folder("qwen3")))
    encoder = build_model(recipe.model_spec(), catalog_size=500).encoder.eval()
    assert isinstance(recipe.method, DenseSettings)
    module = RetrievalModule(encoder, recipe.method.objective, popularity_N=np.ones(500, np.int64)).eval()
    windows = [Window(np.random.default_rng(seed).integers(0, 500, 20)) for seed in range(8)]
    batch = module.collate(windows)
    with torch.no_grad():
        loss = module(batch).item() / batch.count
    assert abs(loss - math.log(500)) < 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["requires="], "items.frozen needs requires"),
        (["items.words=true", "items.frozen=false"], "starts items from their titles, and requires"),
        ([*FREE, "history.form=text", "items.dim=64"], "items.dim has no effect"),
    ],
)
def test_forms_that_cannot_be_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        get_recipe("e4srec", settings)
