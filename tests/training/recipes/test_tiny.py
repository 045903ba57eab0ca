"""``tiny`` and the whole of anyo on it: titles and ids in, artifact out, free titles understood."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from index import Catalog, open_index
from modeling.methods.dense import load_artifact
from testing.datasets import write_dataset
from training import tiny
from training.data.dataset import Dataset, read_dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("ring")))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> Path:
    """A folder with a tiny backbone, made once for all tests of this file."""
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "TOKEN_BUDGET", 40_000)
        recipe = get_recipe("anyo", ["optimizer.epochs=2", "optimizer.positions=100"], backbone="tiny")
        run(recipe, dataset, RunOptions(out=folder / "compressed"), QUIET)
        titles = get_recipe(
            "anyo",
            ["history.form=titles", "optimizer.epochs=2", "optimizer.positions=100"],
            backbone="tiny",
        )
        run(titles, dataset, RunOptions(out=folder / "titles"), QUIET)
    return folder


@pytest.mark.parametrize("form", ["compressed", "titles"])
def test_an_artifact_stands_alone(form: str, root: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Moved away from the folder it was made in, without the backbone cache, it loads and answers with real items."""
    folder = tmp_path / form
    shutil.copytree(root / form, folder)
    artifact = load_artifact(folder)
    catalog, index = Catalog.read(folder / "catalog.parquet"), open_index(folder / "index")
    encoder = artifact.encoder
    free = encoder.read_titles(["a red lamp nobody has", "new bowl"])
    histories = [[1, 2, 3], [free[0]], [4, free[1], 5]]
    users = encoder.encode([encoder.prepare(history) for history in histories])
    scores, rows = index.search(users, 10, exclude=[np.asarray([1, 2, 3]), np.empty(0, np.int64), np.asarray([4, 5])])
    assert ((rows >= 0) & (rows < len(catalog))).all()
    assert not {1, 2, 3} & set(rows[0].tolist())
    assert np.isfinite(scores).all()
    assert set(artifact.record.capabilities.reads) == {"ids", "text"}
    assert artifact.record.backbone.lm_head == "tied"
    assert not any("/" in str(value) and Path(str(value)).is_absolute() for value in artifact.record.model)


def test_tiny_is_made_once(root: Path, dataset: Dataset) -> None:
    made = sorted(path.name for path in (root / ".backbones").iterdir())
    assert len([name for name in made if name.startswith("tiny-")]) == 1
    assert all(name.startswith(("tiny-", "titles-")) for name in made), "models, and vectors of titles"


def test_tiny_never_reads_what_is_asked_for_later(dataset: Dataset, tmp_path: Path) -> None:
    """Its name is a hash of all it was trained on: titles and training sequences, which end before validation."""
    from training.data.splits import leave_one_out

    split = leave_one_out(dataset)
    for user in range(dataset.n_users):
        assert len(split.train_row(user)) == dataset.lengths_U[user] - 2
