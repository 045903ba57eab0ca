"""Filters find what a look at every item finds, in a catalog, in one whose items change, and in an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import Catalog, FlatIndex
from index.base import RowArray
from index.catalog import CatalogError
from index.filters.language import Condition, Filter, every, in_categories, matches, some, typed
from index.filters.stored import attributes_text, read_attributes
from index.live_catalog import ChangedItem, LiveCatalog
from index.live_index import LiveIndex

NAMES = ("price", "language", "tags", "new")
TEXTS = ("a", "b", "c", "1")
SIZE = 40

scalars = st.one_of(st.sampled_from(TEXTS), st.booleans(), st.integers(0, 3), st.sampled_from((0.5, 1.0, -2.5)))
attributes = st.dictionaries(st.sampled_from(NAMES), st.one_of(scalars, st.lists(st.sampled_from(TEXTS)).map(tuple)))
categories = st.lists(st.sampled_from(TEXTS), max_size=2, unique=True).map(tuple)
lists = st.one_of(st.none(), st.lists(scalars, min_size=1, max_size=3).map(lambda values: tuple(map(typed, values))))
bounds = st.one_of(st.none(), st.integers(-1, 3).map(float))
conditions = st.builds(
    Condition, st.sampled_from((*NAMES, "categories", "unknown")), lists, lists, lists, bounds, bounds, bounds, bounds
)
filters: st.SearchStrategy[Filter] = st.recursive(
    conditions, lambda inner: st.builds(lambda join, parts: join(parts), st.sampled_from((every, some)),
                                        st.lists(inner, min_size=1, max_size=3)), max_leaves=4,
)  # fmt: skip


def catalog_of(items: list[tuple[dict[str, Any], tuple[str, ...]]]) -> Catalog:
    ids = tuple(f"i{row}" for row in range(len(items)))
    popularity = np.arange(len(items)) % 7
    texts = tuple(attributes_text(named) for named, _ in items)
    return Catalog(ids, ids, tuple(names for _, names in items), popularity, "train", texts)


item = st.tuples(attributes, categories)


@settings(max_examples=60, deadline=None)
@given(st.lists(item, min_size=1, max_size=SIZE), st.lists(filters, min_size=1, max_size=4))
def test_rows_of_a_filter_are_those_of_the_items_that_pass_it(items: list[Any], wanted: list[Filter]) -> None:
    catalog = catalog_of(items)
    for each in wanted:
        assert catalog.table.rows(each).tolist() == [
            row for row, (named, names) in enumerate(items) if matches(each, named, names)
        ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(item, min_size=2, max_size=SIZE),
    st.lists(st.tuples(st.integers(0, SIZE + 3), st.one_of(st.none(), item), st.booleans()), max_size=12),
    filters,
)
def test_changed_items_are_followed_change_by_change(items: list[Any], changes: list[Any], wanted: Filter) -> None:
    live = LiveCatalog(catalog_of(items))
    followed: RowArray = np.empty(0, np.int64)
    generation = 0
    for number, (which, content, is_open) in enumerate(changes, 1):
        name, row = f"i{which}", len(items) + number
        changed = None if content is None else ChangedItem(name, name, content[1], content[0], is_open)
        live.change(name, row, changed)
        if number % 3 == 0:
            brought = live.changed_rows(wanted, followed, generation)
            assert brought is not None
            followed, generation = brought, live.generation
    found = live.changed_rows(wanted, followed, generation)
    expected = [row for row, each in sorted(live.all_changed()) if matches(wanted, each.attributes, each.categories)]
    assert found is not None and found.tolist() == expected
    assert [row for row in range(len(items)) if live.open_N[row]] == [
        row for row in range(len(items)) if live.is_open(row)
    ]


def test_a_filter_says_the_same_in_any_order_and_tells_types_apart() -> None:
    cheap, sea = Condition("price", at_most=20), Condition("tags", any_of=(typed("sea"), typed("crime")))
    assert every([cheap, every([sea, cheap])]) == every([sea, cheap]) and every([sea]) == sea
    assert sea == Condition("tags", any_of=(typed("crime"), typed("sea"), typed("sea")))
    assert len({Condition("a", any_of=(typed(value),)) for value in (True, 1, 1.0, "1", "True")}) == 4
    assert every([some([cheap, sea])]) == some([cheap, sea]) != every([cheap, sea])
    assert in_categories(["b", "a"]) == in_categories(["a", "b"])
    assert not matches(Condition("n", above=0), {"n": True}, ()), "true is no number"


@pytest.mark.parametrize("queries", [1, 9])
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.03, 0.3, 0.6, 1.0])
def test_a_search_among_allowed_rows_is_that_of_brute_force(queries: int, share: float) -> None:
    rng = np.random.default_rng(3)
    vectors_ND = rng.integers(-3, 4, (2000, 8)).astype(np.float32)  # many ties
    query_BD = rng.integers(-3, 4, (queries, 8)).astype(np.float32)
    allowed = np.sort(rng.choice(2000, max(1, int(2000 * share)), replace=False))
    exclude = [rng.choice(2000, 100 if query % 2 else 5, replace=False) for query in range(queries)]
    live = LiveIndex(FlatIndex.build(vectors_ND)).changed([], [int(allowed[-1])])
    for index, closed in ((FlatIndex.build(vectors_ND), []), (live, [int(allowed[-1])])):
        _, rows_BK = index.search(query_BD, 50, exclude, allowed)
        for query in range(queries):
            eligible = np.setdiff1d(np.setdiff1d(allowed, exclude[query]), closed)
            scores = vectors_ND[eligible] @ query_BD[query]
            expected = eligible[np.lexsort((eligible, -scores))][:50]
            assert rows_BK[query][: len(expected)].tolist() == expected.tolist()
            assert (rows_BK[query][len(expected) :] == -1).all()


def test_a_catalog_keeps_attributes_in_its_file(tmp_path: Path) -> None:
    given = {"price": 12.5, "n": 3, "in_stock": True, "tags": ("sea", "海"), "language": "ja"}
    catalog = catalog_of([(given, ()), ({}, ("a",))])
    catalog.write(tmp_path / "catalog.parquet")
    read = Catalog.read(tmp_path / "catalog.parquet")
    assert [read.attributes(row) for row in range(2)] == [given, {}]
    assert read.table.rows(Condition("tags", all_of=(typed("海"), typed("sea")))).tolist() == [0]
    assert read.table.kinds["tags"] == {"string"} and read.table.kinds["in_stock"] == {"boolean"}


@pytest.mark.parametrize(
    "text",
    ["[1]", '{"a": null}', '{"a": {"b": 1}}', '{"a": [1]}', '{"a": 1e16}', '{"categories": "x"}', '{"": 1}', "{"],
)
def test_a_file_with_other_attributes_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):
        read_attributes(text)
    catalog_of([({"a": 1}, ()), ({}, ())]).write(tmp_path / "catalog.parquet")
    frame = pl.read_parquet(tmp_path / "catalog.parquet").with_columns(attributes=pl.Series(["", text]))
    frame.write_parquet(tmp_path / "catalog.parquet")
    with pytest.raises(CatalogError, match="attributes cannot be read"):
        Catalog.read(tmp_path / "catalog.parquet")
