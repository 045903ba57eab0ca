"""The catalog: ids to rows and back, look-up by title, popularity, and the parquet file."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from index import Catalog, CatalogError
from index.live_catalog import ChangedItem, LiveCatalog


@pytest.fixture
def catalog():
    return Catalog(
        item_ids=("m9", "m2", "m5", "m1"),
        titles=("The Matrix (1999)", "Straße der Nacht", "Matrix Reloaded", "Night Road"),
        categories=(("Action",), (), ("Action", "Sci-Fi"), ("Drama",)),
        popularity=np.array([5, 7, 5, 0]),
        popularity_counted_on="train",
    )


def test_ids_go_to_rows_and_unknown_ids_to_none(catalog):
    assert [catalog.row(item_id) for item_id in catalog.item_ids] == [0, 1, 2, 3]
    assert catalog.row("nope") is None and len(catalog) == 4


def test_search_ignores_case_wants_every_word_and_gives_popular_titles_first(catalog):
    assert catalog.search("matrix") == [0, 2]
    assert catalog.search("RELOADED matrix") == [2]
    assert catalog.search("STRASSE") == [1]
    assert catalog.search("zzz") == []
    assert catalog.search("", limit=2) == [1, 0] and catalog.search("", limit=2, offset=2) == [2, 3]
    assert catalog.search("matrix", limit=1, offset=1) == [2]
    with pytest.raises(ValueError, match="offset -1"):
        catalog.search("a", offset=-1)


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("Café", "cafe\u0301"),
        ("Cafe\u0301", "CAFÉ"),
        ("ガンダム", "ｶﾞﾝﾀﾞﾑ"),
        ("ｶﾞﾝﾀﾞﾑ", "か\u3099ンダム".replace("か", "カ")),
        ("Ｍａｔｒｉｘ", "matrix"),
        ("matrix", "ＭＡＴＲＩＸ"),
        ("东京　物语", "物语 东京"),
        ("x² plan", "X2"),
        ("İstanbul", "i\u0307stanbul"),
        ("ΰ", "Ϋ\u0301"),
    ],
    ids=ascii,
)
def test_search_finds_a_title_in_any_form_of_its_characters(title, query):
    catalog = Catalog(("a", "b"), (title, "other"), ((), ()), np.array([1, 2]), "train")
    assert catalog.search(query) == [0]


def test_items_are_found_by_their_whole_title_in_any_form_of_its_characters():
    titles = ("Tea for Two", "TEA  FOR TWO", "Tea", "\u304b\u3099", "Stra\u00dfe")
    catalog = Catalog(tuple("abcde"), titles, ((),) * 5, np.arange(5), "train")
    assert catalog.titled("\uff34ea for two ") == [0, 1]
    assert (catalog.titled("tea"), catalog.titled("\u304c"), catalog.titled("STRASSE")) == ([2], [3], [4])
    assert catalog.titled("te") == catalog.titled("") == []


def test_a_changed_item_is_found_by_its_old_and_its_new_title():
    catalog = LiveCatalog(Catalog(("a", "b"), ("Tea", "Milk"), ((), ()), np.arange(2), "train"))
    catalog.change("a", 5, ChangedItem("a", "Green Tea", trained_row=0))
    catalog.change("c", 6, ChangedItem("c", "MILK"))
    assert [catalog.titled(title) for title in ("tea", "green tea", "milk")] == [[5], [5], [1, 6]]
    catalog.change("a", 7, ChangedItem("a", "Black Tea", trained_row=0))
    catalog.change("c", 8, None)
    assert [catalog.titled(title) for title in ("tea", "green tea", "black tea", "milk")] == [[7], [], [7], [1]]


def test_popular_goes_down_with_ties_by_row_and_within_categories(catalog):
    assert catalog.popular().tolist() == [1, 0, 2, 3]
    assert catalog.popular(["Sci-Fi", "Drama"]).tolist() == [2, 3]
    assert catalog.popular(["Opera"]).tolist() == []
    assert catalog.in_categories(["Action", "Sci-Fi"]).tolist() == [0, 2]
    assert catalog.known_categories == ("Action", "Drama", "Sci-Fi")


def test_rows_of_categories_are_those_of_each_item_once_and_ascending():
    names = [(), ("A",), ("B", "A"), ("C",), ("A", "C", "B")]
    catalog = Catalog(tuple("abcde"), tuple("ABCDE"), tuple(names), np.zeros(5, np.int64), "train")
    for asked in ([], ["A"], ["B", "C"], ["C", "B", "A"], ["none"], ["none", "B"]):
        found = catalog.in_categories(asked)
        assert found.dtype == np.int64
        assert found.tolist() == [row for row in range(5) if set(names[row]) & set(asked)]


def test_a_catalog_survives_its_file(catalog, tmp_path):
    catalog.write(tmp_path / "catalog.parquet")
    again = Catalog.read(tmp_path / "catalog.parquet")
    assert (again.item_ids, again.titles, again.categories) == (
        catalog.item_ids,
        catalog.titles,
        catalog.categories,
    )
    assert again.popularity.tolist() == [5, 7, 5, 0] and again.popularity_counted_on == "train"


def test_columns_of_different_lengths_and_repeated_ids_are_refused():
    with pytest.raises(CatalogError, match="hold 1, 1, 1, 2"):
        Catalog(("a",), ("A",), ((),), np.array([1, 2]), "train")
    with pytest.raises(CatalogError, match="item id 'a' stands twice"):
        Catalog(("a", "b", "a"), ("A", "B", "C"), ((), (), ()), np.zeros(3, dtype=np.int64), "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop("title"), "column title of type None; expected String"),
        (
            lambda frame: frame.with_columns(pl.col("popularity").cast(pl.Float64)),
            "column popularity of type Float64",
        ),
        (lambda frame: frame.reverse(), "rows out of order"),
        (lambda frame: frame.clear(), "holds no items"),
        (lambda frame: frame.with_columns(title=pl.lit(None, dtype=pl.String)), "empty cells"),
        (lambda frame: frame.with_columns(item_id=pl.lit("x")), "item id 'x' stands twice"),
    ],
)
def test_a_wrong_file_is_refused_with_what_is_wrong(catalog, tmp_path, change, message):
    path = tmp_path / "catalog.parquet"
    catalog.write(path)
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(CatalogError, match=message):
        Catalog.read(path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "catalog.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(CatalogError, match="cannot be read as parquet"):
        Catalog.read(tmp_path / "catalog.parquet")
    with pytest.raises(CatalogError, match="is missing"):
        Catalog.read(tmp_path / "none.parquet")
