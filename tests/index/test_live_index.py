"""An index and a catalog whose items change give what a new index over the same items would give."""

from __future__ import annotations

import numpy as np
import pytest

from index import Catalog, FlatIndex, build_index
from index.base import SearchError
from index.live_catalog import ChangedItem, LiveCatalog
from index.live_index import MOST_DELTA, LiveIndex
from index.spec import spec_of

N, D = 40, 6


def brute(vectors: dict[int, np.ndarray], query_D: np.ndarray, k: int, exclude: set[int]) -> list[int]:
    """Rows by exact search, equal scores by row. Vectors and queries are small integers, so that all sums are exact."""
    scored = sorted((-float(query_D @ vector), row) for row, vector in vectors.items() if row not in exclude)
    return [row for _, row in scored[:k]]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_changes_and_merges_equal_a_search_over_what_there_is(kind: str) -> None:
    rng = np.random.default_rng(3)
    table_ND = rng.integers(-3, 4, (N, D)).astype(np.float32)
    live = LiveIndex(build_index(spec_of(kind), table_ND))
    now = {row: table_ND[row] for row in range(N)}
    merges = 0
    for number in range(1, 3 * MOST_DELTA):
        closed = rng.choice([*now, N + 5000]).item() if number % 3 else 10**6
        vector_D = rng.integers(-3, 4, D).astype(np.float32)
        plan = live.plan()
        live = live.changed([(N + number, vector_D)], [closed])
        now.pop(closed, None)
        now[N + number] = vector_D
        if plan is not None:  # began before the change, ends after it
            live = live.after(plan, plan.run())
            merges += 1
        if number % 20 == 0:
            queries_BD = rng.integers(-3, 4, (3, D)).astype(np.float32)
            exclude = [rng.choice(list(now), 5) for _ in queries_BD]
            _, rows_BK = live.search(queries_BD, 12, exclude)
            expected = [brute(now, q, 12, set(e.tolist())) for q, e in zip(queries_BD, exclude, strict=True)]
            assert rows_BK.tolist() == expected
            allowed = np.array(sorted(rng.choice(list(now), 30, replace=False)))
            _, rows_BK = live.search(queries_BD, 5, allowed=np.append(allowed, 10**6))
            part = {row: now[row] for row in allowed.tolist()}
            assert rows_BK.tolist() == [brute(part, query_D, 5, set()) for query_D in queries_BD]
    assert merges >= 1 and live.size == len(now)
    for row in now:
        assert (live.keys(np.array([row]))[0] == now[row]).all()


def test_rows_that_are_gone_need_no_care_and_have_no_vector() -> None:
    live = LiveIndex(FlatIndex.build(np.eye(3, dtype=np.float32))).changed([], [0, 1])
    scores, rows = live.search(np.ones((1, 3), np.float32), 3, exclude=[np.array([99])])
    assert rows.tolist() == [[2, -1, -1]] and np.isneginf(scores[0, 1:]).all()
    with pytest.raises(SearchError, match="row 99"):
        live.keys(np.array([99]))


def catalog() -> LiveCatalog:
    ids = tuple(f"i{row}" for row in range(4))
    titles = tuple(f"Red {row}" if row % 2 else f"Blue {row}" for row in range(4))
    popularity = np.array([5, 9, 1, 9])
    return LiveCatalog(Catalog(ids, titles, (("a",), ("b",), ("a", "b"), ()), popularity, "train"))


def test_a_catalog_shows_items_as_they_are_now() -> None:
    live = catalog()
    assert live.search("", 9) == [1, 3, 0, 2]
    assert live.change("i1", 4 + 1, ChangedItem("i1", "Green", ("c",), {"price": 2.5}, True, 1, 9)) == [1]
    assert live.change("new", 4 + 2, ChangedItem("new", "Red new", ("a",), {})) == []
    assert live.change("i3", 4 + 3, ChangedItem("i3", "Red 3", (), {}, False, 3, 9)) == [3]
    assert live.change("i0", 4 + 4, None) == [0]
    assert live.search("", 9) == [5, 2, 6] and live.search("red", 9) == [6] and live.search("", 1, 1) == [2]
    assert [live.row(name) for name in ("i0", "i1", "i2", "i3", "new", "none")] == [None, 5, 2, 7, 6, None]
    assert [live.titles[row] for row in (5, 6, 2)] == ["Green", "Red new", "Blue 2"]
    assert live.attributes(5) == {"price": 2.5} and live.attributes(2) == {}
    assert live.has_new_category("c") and not live.has_new_category("d")
    assert list(live.by_popularity()) == [5, 2, 6] and live.kinds("price") == {"number"}
    assert live.known_categories == ("a", "b", "c")
    assert [live.current(row) for row in (0, 1, 2, 3, 6)] == [None, 5, 2, None, 6]
    assert (live.withdrawn(), live.new_titles(), len(live)) == (frozenset({0, 3}), {6: "Red new"}, 3)


def test_the_latest_row_of_an_item_is_known_from_an_older_one() -> None:
    live = catalog()
    live.change("new", 5, ChangedItem("new", "One"))
    live.change("new", 6, ChangedItem("new", "Two"))
    live.change("i2", 7, ChangedItem("i2", "Blue 2", trained_row=2))
    assert live.latest([5, 2, 1]) == [6, 7, 1] and not live.is_open(5) and live.is_open(6)
    assert live.rows(["new", "i2", "i0"]) == [6, 7, 0] and live.rows(["new", "gone"]) is None
