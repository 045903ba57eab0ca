"""A ring of items and an id model over it, which tests of several recipes build on."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing.datasets import ring_dataset, trained_sasrec
from training.data.dataset import Dataset


@pytest.fixture(scope="session")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=20, items=20)


@pytest.fixture(scope="session")
def sasrec(ring: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_sasrec(ring, tmp_path_factory.mktemp("artifacts"))
