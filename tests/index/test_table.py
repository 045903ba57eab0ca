"""The index over a table of items by items, against the same sums over the whole matrix."""

from __future__ import annotations

import numpy as np
import pytest

from index.base import SearchError
from index.live_index import MOST_DELTA, LiveIndex
from index.tables.table import TableIndex

N, LAST, DECAY = 30, 3, 0.5


@pytest.fixture(scope="module")
def matrix_NN() -> np.ndarray:
    """Small counts, so that all sums are exact and many are equal; rows 0 and 1 are empty."""
    rng = np.random.default_rng(5)
    found = rng.integers(1, 4, (N, N)) * (rng.random((N, N)) < 0.2)
    np.fill_diagonal(found, 0)
    found[:2] = 0
    return found


@pytest.fixture(scope="module")
def prior_N() -> np.ndarray:
    return np.arange(N) % 3 / 4


@pytest.fixture(scope="module")
def table(matrix_NN: np.ndarray, prior_N: np.ndarray) -> TableIndex:
    rows, columns = np.nonzero(matrix_NN)
    offsets = np.searchsorted(rows, np.arange(N + 1))
    values = matrix_NN[rows, columns].astype(np.float32)
    return TableIndex(prior_N, offsets, columns.astype(np.int32), values, last=LAST, decay=DECAY)


def expected(matrix_NN: np.ndarray, prior_N: np.ndarray, history: list[int]) -> np.ndarray:
    """Scores [N] by the definition."""
    newest = history[::-1][:LAST]
    return prior_N + sum(DECAY**age * matrix_NN[row] for age, row in enumerate(newest))


def best(scores: dict[int, float], k: int) -> list[int]:
    return [row for row, _ in sorted(scores.items(), key=lambda each: (-each[1], each[0]))[:k]]


HISTORIES = [[4], [4, 9], [2, 3, 17, 8], [0], [N + 50, 6], [7, 7, 7]]


def test_a_search_gives_the_best_of_the_sums(table: TableIndex, matrix_NN: np.ndarray, prior_N: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    for allowed in (None, rng.permutation(N)[:9]):
        for hidden in (4, N - 3):  # more than a few are left out of the search itself
            exclude = [rng.permutation(N)[:hidden] for _ in HISTORIES]
            scores_BK, rows_BK = table.search(table.queries(HISTORIES), 7, exclude, allowed)
            for history, left, rows_K, scores_K in zip(HISTORIES, exclude, rows_BK, scores_BK, strict=True):
                scores_N = expected(matrix_NN, prior_N, [row if row < N else 0 for row in history])
                able = {row: scores_N[row] for row in (range(N) if allowed is None else allowed.tolist())}
                able = {row: score for row, score in able.items() if row not in left.tolist()}
                assert rows_K[rows_K >= 0].tolist() == best(able, 7)
                np.testing.assert_array_equal(scores_K[rows_K >= 0], scores_N[rows_K[rows_K >= 0]])


def test_scores_of_some_items_are_those_of_the_search(table: TableIndex) -> None:
    queries_BD = table.queries(HISTORIES)
    scores_BK, rows_BK = table.search(queries_BD, N)
    for query_D, scores_K, rows_K in zip(queries_BD, scores_BK, rows_BK, strict=True):
        np.testing.assert_array_equal(table.scores(query_D[None], table.keys(rows_K))[0], scores_K)


def test_similar_items_are_those_that_the_table_has_for_an_item(table: TableIndex, matrix_NN: np.ndarray) -> None:
    for row in range(N):
        scores_K, rows_K = table.similar(row, N)
        related = {each: float(matrix_NN[row, each]) for each in np.flatnonzero(matrix_NN[row]).tolist()}
        assert rows_K.tolist() == best(related, N) and scores_K.tolist() == [related[each] for each in rows_K]
    assert table.similar(0, 5)[1].tolist() == [], "nothing is known of it, and popular items are not similar"


def test_items_are_alike_that_lead_to_the_same_items(table: TableIndex, matrix_NN: np.ndarray) -> None:
    rows = np.array([0, 5, 9, 9, 20])
    found = table.cosines(table.keys(rows), table.keys(np.arange(N)))
    lengths = np.linalg.norm(matrix_NN, axis=1)
    wanted = matrix_NN[rows] @ matrix_NN.T / np.maximum(np.outer(lengths[rows], lengths), 1e-9)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_array_equal(
        table.alike_to(table.keys(rows))(3), table.cosines(table.keys(rows[3:4]), table.keys(rows))[0]
    )


def test_an_item_that_changed_keeps_its_counts_under_its_new_row(
    table: TableIndex, matrix_NN: np.ndarray, prior_N: np.ndarray
) -> None:
    live, row_of = LiveIndex(table), {row: row for row in range(N)}
    rng = np.random.default_rng(2)
    for number in range(MOST_DELTA + 20):
        item, new = int(rng.integers(N)), N + 1 + number
        live = live.changed([(new, table.keys(np.array([item]))[0])], [row_of[item]])
        row_of[item] = new
        if (plan := live.plan()) is not None:
            live = live.after(plan, plan.run())
    assert live.delta_size < MOST_DELTA, "it was merged"
    live = live.changed([], [row_of.pop(3)])
    queries_BD = table.queries(HISTORIES)
    for history, query_D in zip(HISTORIES, queries_BD, strict=True):
        scores_N = expected(matrix_NN, prior_N, [row if row < N else 0 for row in history])
        now = {row: float(scores_N[item]) for item, row in row_of.items()}
        excluded = np.array([row_of[8], N + 10**6])
        left = {row: score for row, score in now.items() if row != row_of[8]}
        (_,), (rows_K,) = live.search(query_D[None], 9, [excluded])
        assert rows_K.tolist() == best(left, 9)
        rows = np.array(list(row_of.values()))
        np.testing.assert_array_equal(live.scores(query_D[None], live.keys(rows))[0], scores_N[list(row_of)])
        (_,), (rows_K,) = live.search(query_D[None], 9, None, rows[:5])
        assert rows_K[rows_K >= 0].tolist() == best({row: now[row] for row in rows[:5].tolist()}, 9)
    _, near = live.similar(row_of[9], 4)
    assert near.tolist() == best(
        {row_of[each]: float(matrix_NN[9, each]) for each in np.flatnonzero(matrix_NN[9]) if each in row_of}, 4
    )


def test_what_is_no_query_is_refused(table: TableIndex) -> None:
    query = table.queries([[3]])
    query[0, 1] = N + 1
    with pytest.raises(SearchError, match=f"row {N}; rows of this table run from 0 to {N - 1}"):
        table.search(query, 3)
    with pytest.raises(SearchError, match="row 30"):
        table.keys(np.array([N]))
    with pytest.raises(SearchError, match="a table of 0 items"):
        TableIndex(np.zeros(0), np.zeros(1, int), np.zeros(0, np.int32), np.zeros(0, np.float32), last=1, decay=1.0)
