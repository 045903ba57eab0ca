"""Search on the device against the dense product and against FAISS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import modeling.inference.torch_index
from index import FlatIndex, VectorIndex
from modeling.inference.torch_index import TorchIndex
from tests.index.test_flat_index import searches


@settings(max_examples=200, deadline=None)
@given(searches())
def test_it_answers_as_the_faiss_index_does(search):
    vectors, queries, k, exclude, allowed, _ = search
    expected_scores, expected_rows = FlatIndex.build(vectors).search(queries, k, exclude, allowed)
    scores, rows = TorchIndex(vectors, "cpu").search(queries, k, exclude, allowed)
    assert rows.tolist() == expected_rows.tolist() and scores.tolist() == expected_scores.tolist()
    assert scores.dtype == np.float32 and rows.dtype == np.int64


def test_many_queries_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(9, 8)).astype(np.float32)
    exclude = [rng.integers(0, 50, 5) for _ in queries]
    index = TorchIndex(vectors, "cpu")
    assert isinstance(index, VectorIndex) and (index.size, index.dim) == (50, 8)
    whole = index.search(queries, 7, exclude)
    monkeypatch.setattr(modeling.inference.torch_index, "LARGEST_SCORES", 100)
    parts = index.search(queries, 7, exclude)
    assert whole[1].tolist() == parts[1].tolist() == FlatIndex.build(vectors).search(queries, 7, exclude)[1].tolist()
    np.testing.assert_allclose(whole[0], parts[0], rtol=1e-5)
    assert index.vectors_ND.tolist() == vectors.tolist()


@pytest.mark.parametrize(
    ("queries", "k", "exclude", "message"),
    [
        (np.ones((1, 3)), 0, None, "k is 0"),
        (np.ones((1, 4)), 1, None, r"queries have shape \(1, 4\)"),
        (np.full((1, 3), np.nan), 1, None, "NaN or infinity"),
        (np.ones((1, 3)), 1, [np.array([5])], "row 5"),
        (np.ones((1, 3)), 1, [], "0 lists for 1 queries"),
    ],
)
def test_what_cannot_be_answered_is_refused(queries, k, exclude, message):
    with pytest.raises(ValueError, match=message):
        TorchIndex(np.ones((4, 3), np.float32), "cpu").search(queries, k, exclude)


@pytest.mark.parametrize("vectors", [np.ones((0, 3), np.float32), np.full((2, 3), np.inf, np.float32)])
def test_vectors_that_cannot_be_ranked_are_refused(vectors):
    with pytest.raises(ValueError, match=r"item vectors? "):
        TorchIndex(vectors, "cpu")
