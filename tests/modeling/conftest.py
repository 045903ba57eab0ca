"""Fixtures of the tests of `modeling`: small random models on disk, and one thread."""

from __future__ import annotations

import os

import pytest
import torch

from testing.models import backbone_folder, small_model

__all__ = ["backbone_folder", "small_model"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.set_num_threads(1)
