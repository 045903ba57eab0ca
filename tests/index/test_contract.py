"""The contract of `VectorIndex`, held by every kind of index and by the index on a torch device."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import FlatIndex, SearchError, VectorIndex, approximate, base, build_index, spec_of
from index.kinds import index_class, kind_names
from modeling.inference.torch_index import TorchIndex

KINDS = kind_names()
APPROXIMATE = [kind for kind in KINDS if not index_class(kind).exact]
SUBJECTS = [*KINDS, "torch"]
EXACT = [name for name in SUBJECTS if name not in APPROXIMATE]


def build(name, vectors):
    return TorchIndex(np.asarray(vectors), "cpu") if name == "torch" else build_index(spec_of(name), vectors)


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
    few = draw(st.sampled_from([0, size // 3, base.FEW]))
    return vectors, queries, draw(st.integers(1, size + 5)), exclude, allowed, few


@pytest.mark.parametrize("name", SUBJECTS)
@settings(max_examples=150, deadline=None)
@given(search=searches())
def test_an_answer_holds_eligible_rows_only_with_their_products_sorted_by_score_then_row(name, search):
    vectors, queries, k, exclude, allowed, few = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "FEW", few)  # dropped from the answer, or left out of the search
        patch.setattr(approximate, "NARROW_ROWS", 0)
        patch.setattr(approximate, "NARROW_SHARE", 0)
        scores, rows = build(name, vectors).search(queries, k, exclude, allowed)
    assert scores.dtype == np.float32 and rows.dtype == np.int64 and scores.shape == rows.shape == (len(queries), k)
    for b, query in enumerate(queries):
        closed = set(exclude[b].tolist()) if exclude is not None else set()
        if allowed is not None:
            closed |= set(range(len(vectors))) - set(allowed.tolist())
        expected = dense_top(vectors, query, k, closed)
        found = rows[b, : len(expected)].tolist()
        assert rows[b, len(expected) :].tolist() == [-1] * (k - len(expected))
        assert np.isneginf(scores[b, len(expected) :]).all()
        assert scores[b, : len(expected)].tolist() == [float(vectors[row] @ query) for row in found]
        assert len(set(found)) == len(found) and not set(found) & closed
        assert found == sorted(found, key=lambda row: (-float(vectors[row] @ query), row))
        if name in EXACT:
            assert found == expected


@pytest.mark.parametrize("name", EXACT)
def test_equal_items_are_cut_by_row(name):
    vectors = np.ones((500, 4), dtype=np.float32)
    _, rows = build(name, vectors).search(np.ones((1, 4), dtype=np.float32), 5)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]
    plain = faiss.IndexFlatIP(4)
    plain.add(vectors)
    assert plain.search(np.ones((1, 4), dtype=np.float32), 5)[1].tolist() != [[0, 1, 2, 3, 4]]


@pytest.fixture(scope="module")
def clustered():
    """Items in clusters, users near them: 4000 items, 200 queries."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((80, 24))
    items = centres[rng.integers(0, 80, 4000)] + 0.4 * rng.standard_normal((4000, 24))
    users = centres[rng.integers(0, 80, 200)] + 0.4 * rng.standard_normal((200, 24))
    return items.astype(np.float32), users.astype(np.float32)


@pytest.fixture(scope="module")
def built(clustered):
    made = {}

    def get(name):
        if name not in made:
            made[name] = build(name, clustered[0])
        return made[name]

    return get


@pytest.mark.parametrize("name", [name for name in SUBJECTS if name != "torch"])
def test_a_query_alone_is_answered_as_in_a_batch_with_others_excluding(name, built, clustered):
    index, (_, users) = built(name), clustered
    rng = np.random.default_rng(1)
    exclude = [rng.integers(0, index.size, size=(20, 0, 100)[b % 3]) for b in range(40)]
    scores, rows = index.search(users[:40], 10, exclude)
    for b in range(40):
        alone_scores, alone_rows = index.search(users[b : b + 1], 10, [exclude[b]])
        assert set(alone_rows[0].tolist()) & set(exclude[b].tolist()) == set()
        if index.exact:
            assert alone_rows[0].tolist() == rows[b].tolist()
            assert alone_scores[0].tobytes() == scores[b].tobytes()
        assert not set(rows[b].tolist()) & set(exclude[b].tolist())


@pytest.mark.parametrize("name", SUBJECTS)
def test_recall_on_other_queries_is_about_what_is_stated(name, built, clustered):
    index, (items, users) = built(name), clustered
    exact = FlatIndex.build(items)
    for allowed in (None, np.arange(0, 4000, 2)):
        _, wanted = exact.search(users, 10, allowed=allowed)
        _, found = index.search(users, 10, allowed=allowed)
        recall = np.mean(approximate.overlaps(found, wanted))
        assert recall >= (1.0 if index.exact else index.recall_at_10 - 0.03)
    assert 0.8 < index.recall_at_10 <= 1.0


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("eligible", [0, 1, 7, 30])
def test_narrow_filters_leave_nothing_out(name, eligible, built, clustered):
    index, (items, users) = built(name), clustered
    allowed = np.random.default_rng(3).permutation(len(items))[:eligible]
    scores, rows = index.search(users[:20], 10, allowed=allowed)
    expected_scores, expected = FlatIndex.build(items).search(users[:20], 10, allowed=allowed)
    assert rows.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_query_that_excludes_nearly_everything_gets_the_rest(name, built, clustered):
    index, (items, users) = built(name), clustered
    kept = np.array([5, 77, 3999])
    _, rows = index.search(users[:2], 10, [np.setdiff1d(np.arange(len(items)), kept), np.array([], np.int64)])
    assert sorted(rows[0, :3].tolist()) == kept.tolist() and rows[0, 3:].tolist() == [-1] * 7
    assert (rows[1] >= 0).all()


@pytest.mark.parametrize("name", SUBJECTS)
def test_it_gives_its_vectors_and_says_what_they_take(name, built, clustered):
    index, (items, _) = built(name), clustered
    assert isinstance(index, VectorIndex) and (index.size, index.dim) == items.shape
    np.testing.assert_array_equal(index.vectors(), items)
    np.testing.assert_array_equal(index.vectors(np.array([7, 0, 7])), items[[7, 0, 7]])
    assert index.nbytes >= items.nbytes
    with pytest.raises(SearchError, match="rows holds row 4000"):
        index.vectors(np.array([4000]))


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_query_that_is_not_finite_is_an_error_that_names_it(name, bad):
    queries = np.zeros((4, 3), dtype=np.float32)
    queries[2, 1] = bad
    with pytest.raises(SearchError, match="query 2 holds NaN or infinity"):
        build(name, np.eye(3)).search(queries, 2)


@pytest.mark.parametrize("name", SUBJECTS)
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
def test_a_search_that_cannot_be_answered_says_what_was_given(name, arguments, message):
    with pytest.raises(SearchError, match=message):
        build(name, np.full((3, 3), 1e3)).search(**arguments)


@pytest.mark.parametrize("name", SUBJECTS)
def test_vectors_that_cannot_be_ranked_are_refused(name):
    with pytest.raises(SearchError, match="item row 1 holds NaN"):
        build(name, np.array([[1.0], [np.nan]], np.float32))
    with pytest.raises(SearchError, match=r"shape \(0, 4\)"):
        build(name, np.empty((0, 4), np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_one_query_leaves_the_callers_thread_setting_as_it_was(kind):
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(3)
        build(kind, np.eye(3)).search(np.ones((1, 3)), 1)
        assert faiss.omp_get_max_threads() == 3
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("kind", APPROXIMATE)
def test_more_effort_finds_more(kind, built, clustered):
    items, users = clustered
    exact = FlatIndex.build(items)
    _, wanted = exact.search(users, 10)
    variants = built(kind).variants()
    efforts = [variant.effort for variant in variants]
    assert efforts == sorted(set(efforts)) and built(kind).effort in efforts
    recalls = [np.mean(approximate.overlaps(each.search(users, 10)[1], wanted)) for each in variants]
    assert recalls[0] < recalls[-1] and recalls[-1] > 0.98
