"""A ring of items and an id model over it, which tests of several recipes build on."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.datasets import QUIET, SMALL, write_dataset
from training.data.dataset import Dataset, read_dataset
from training.recipes import get_recipe
from training.run import RunOptions, run


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(write_dataset(tmp_path_factory.mktemp("data") / "ring", users=20, items=20))


@pytest.fixture(scope="session")
def sasrec(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifacts") / "sasrec"
    run(get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"]), ring, RunOptions(out=out), QUIET)
    return out
