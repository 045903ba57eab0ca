"""The exact index against a dense product, and index folders against damage."""

from __future__ import annotations

import json

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import FlatIndex, IndexFolderError, SearchError, VectorIndex, flat, open_index


def dense_top(vectors_ND, query_D, k, closed):
    """The reference: all products, closed rows taken out, sorted by (-score, row)."""
    scores_N = vectors_ND @ query_D
    rows = [row for row in range(len(vectors_ND)) if row not in closed]
    return sorted(rows, key=lambda row: (-scores_N[row], row))[:k]


@st.composite
def searches(draw):
    size, dim, batch = draw(st.integers(1, 40)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    # Small integers make every product exact in float32, whatever the order of summation, and ties plentiful.
    vectors = rng.integers(-2, 3, size=(size, dim)).astype(np.float32)
    queries = rng.integers(-2, 3, size=(batch, dim)).astype(np.float32)
    exclude = [rng.integers(0, size, size=rng.integers(0, size + 2)) for _ in range(batch)]
    exclude = exclude if draw(st.booleans()) else None
    allowed = rng.permutation(size)[: rng.integers(0, size + 1)] if draw(st.booleans()) else None
    few = draw(st.sampled_from([0, size // 3, flat.FEW]))
    return vectors, queries, draw(st.integers(1, size + 5)), exclude, allowed, few


@settings(max_examples=200, deadline=None)
@given(searches())
def test_the_answer_is_the_dense_product_sorted_by_score_then_row(search):
    vectors, queries, k, exclude, allowed, few = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flat, "FEW", few)  # left out of what comes back, or within the scan
        scores, rows = FlatIndex.build(vectors).search(queries, k, exclude, allowed)
    assert scores.dtype == np.float32 and rows.dtype == np.int64 and scores.shape == rows.shape == (len(queries), k)
    for b, query in enumerate(queries):
        closed = set(exclude[b].tolist()) if exclude is not None else set()
        if allowed is not None:
            closed |= set(range(len(vectors))) - set(allowed.tolist())
        expected = dense_top(vectors, query, k, closed)
        assert rows[b].tolist() == expected + [-1] * (k - len(expected))
        assert scores[b, : len(expected)].tolist() == [float(vectors[row] @ query) for row in expected]
        assert np.isneginf(scores[b, len(expected) :]).all()


def test_equal_items_are_cut_by_row_even_where_faiss_would_keep_others():
    vectors = np.ones((500, 4), dtype=np.float32)
    _, rows = FlatIndex.build(vectors).search(np.ones((1, 4), dtype=np.float32), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]
    plain = faiss.IndexFlatIP(4)
    plain.add(vectors)
    assert plain.search(np.ones((1, 4), dtype=np.float32), 5)[1].tolist() != [[0, 1, 2, 3, 4]]


def test_a_query_alone_scores_the_same_bits_as_in_a_batch_with_others_excluding():
    rng = np.random.default_rng(1)
    index = FlatIndex.build(rng.standard_normal((3000, 48)))
    queries = rng.standard_normal((40, 48)).astype(np.float32)
    exclude = [rng.integers(0, 3000, size=(20, 0, 100)[b % 3]) for b in range(40)]
    scores, rows = index.search(queries, 10, exclude)
    for b in range(40):
        alone_scores, alone_rows = index.search(queries[b : b + 1], 10, [exclude[b]])
        assert alone_rows[0].tolist() == rows[b].tolist()
        assert alone_scores[0].tobytes() == scores[b].tobytes()
        assert not set(rows[b].tolist()) & set(exclude[b].tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_an_error_that_names_it(bad):
    index = FlatIndex.build(np.eye(3))
    queries = np.zeros((4, 3), dtype=np.float32)
    queries[2, 1] = bad
    with pytest.raises(SearchError, match="query 2 holds NaN or infinity"):
        index.search(queries, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries_BD": np.zeros((1, 5)), "k": 1}, r"shape \(1, 5\); this index takes \[batch, 3\]"),
        ({"queries_BD": np.zeros((1, 3)), "k": 0}, "k is 0"),
        ({"queries_BD": np.zeros((2, 3)), "k": 1, "exclude": [np.array([1])]}, "1 lists for 2 queries"),
        (
            {"queries_BD": np.zeros((1, 3)), "k": 1, "exclude": [np.array([3])]},
            r"exclude\[0\] holds row 3; .* 0 to 2",
        ),
        (
            {"queries_BD": np.zeros((2, 3)), "k": 1, "exclude": [np.array([1]), np.array([True])]},
            r"exclude\[1\] holds bool values",
        ),
        ({"queries_BD": np.zeros((1, 3)), "k": 1, "allowed": np.array([-1])}, "allowed holds row -1"),
        ({"queries_BD": np.zeros((1, 3)), "k": 1, "allowed": np.array([True])}, "allowed holds bool values"),
        ({"queries_BD": np.full((1, 3), 3e38), "k": 1}, "overflows float32"),
    ],
)
def test_a_search_that_cannot_be_answered_says_what_was_given(arguments, message):
    index = FlatIndex.build(np.full((3, 3), 1e3))
    with pytest.raises(SearchError, match=message):
        index.search(**arguments)


def test_vectors_that_cannot_be_ranked_are_refused():
    with pytest.raises(SearchError, match="item row 1 holds NaN"):
        FlatIndex.build(np.array([[1.0], [np.nan]]))
    with pytest.raises(SearchError, match=r"shape \(0, 4\)"):
        FlatIndex.build(np.empty((0, 4)))


def test_saving_is_repeatable_and_opening_gives_the_same_answers(tmp_path):
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((50, 8)).astype(np.float32)
    built = FlatIndex.build(vectors)
    built.save(tmp_path / "a")
    FlatIndex.build(vectors).save(tmp_path / "b")
    for name in ("index.faiss", "index.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    opened = open_index(tmp_path / "a")
    assert isinstance(opened, VectorIndex) and (opened.size, opened.dim) == (50, 8)
    for before, after in zip(built.search(vectors[:3], 7), opened.search(vectors[:3], 7), strict=True):
        assert np.array_equal(before, after)
    assert np.array_equal(opened.vectors_ND, vectors)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["index.faiss", "index.json"]


def other_vectors(folder):
    FlatIndex.build(np.ones((5, 3))).save(folder.parent / "other")
    (folder / "index.faiss").write_bytes((folder.parent / "other" / "index.faiss").read_bytes())


def truncated(folder):
    path = folder / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1])


def one_bit(folder):
    path = folder / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def entry_says(**changes):
    def change(folder):
        path = folder / "index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def another_kind(folder):
    import hashlib

    index = faiss.IndexHNSWFlat(3, 4, faiss.METRIC_INNER_PRODUCT)
    faiss.write_index(index, str(folder / "index.faiss"))
    content = (folder / "index.faiss").read_bytes()
    entry_says(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "holds no index.json"),
        (lambda folder: (folder / "index.faiss").unlink(), "index.faiss is missing"),
        (lambda folder: (folder / "index.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "index.json").write_text("[]"), "holds a list; expected an object"),
        (other_vectors, "bytes; index.json says"),
        (truncated, "bytes; index.json says"),
        (one_bit, "sha256"),
        (entry_says(schema=2), "schema 2; this version reads 1"),
        (entry_says(dim="3"), "dim = '3'; expected int"),
        (entry_says(dim=4), "has dim 3; index.json says 4"),
        (entry_says(size=5), "has size 4; index.json says 5"),
        (entry_says(metric="l2"), "metric 'l2'; scores here are inner products"),
        (entry_says(factory="HNSW32"), "factory 'HNSW32'; this version opens: Flat"),
        (another_kind, "holds an index of kind b'IHNf'; index.json says Flat"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(tmp_path, damage, message):
    folder = tmp_path / "index"
    FlatIndex.build(np.eye(4, 3)).save(folder)
    damage(folder)
    with pytest.raises(IndexFolderError, match=message) as caught:
        open_index(folder)
    assert "\n" not in str(caught.value)


def test_one_query_leaves_the_callers_thread_setting_as_it_was():
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        FlatIndex.build(np.eye(3)).search(np.ones((1, 3)), 1)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)
