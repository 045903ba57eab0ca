"""The index on a torch device searches many queries in blocks; the rest of its contract is in tests/index."""

from __future__ import annotations

import numpy as np
import pytest

import modeling.inference.torch_index
from index import FlatIndex
from modeling.inference.torch_index import TorchIndex


def test_many_queries_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(9, 8)).astype(np.float32)
    exclude = [rng.integers(0, 50, 5) for _ in queries]
    index = TorchIndex(vectors, "cpu")
    whole = index.search(queries, 7, exclude)
    monkeypatch.setattr(modeling.inference.torch_index, "LARGEST_SCORES", 100)
    parts = index.search(queries, 7, exclude)
    assert whole[1].tolist() == parts[1].tolist() == FlatIndex.build(vectors).search(queries, 7, exclude)[1].tolist()
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
