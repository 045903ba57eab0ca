"""The catalog: what stands behind row 0..N-1 of an index: ids, titles, categories, popularity.

Model, index and service speak of items by row; an item id becomes a row here, and a row an id. Row order is a
seeded shuffle made by training, so it tells nothing about an item and may break ties of score.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from index.base import RowArray
from index.filters.language import CATEGORIES, AttributeValue
from index.filters.stored import read_attributes
from index.filters.table import AttributeTable
from index.text import folded, title_key

_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "row": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "categories": pl.List(pl.String),
    "popularity": pl.Int64,
    "popularity_counted_on": pl.String,
}
ATTRIBUTES = "attributes"
"""A column that a file may have: see `index.filters.stored`."""

MOST_ITEMS = 50_000_000
LONGEST_TEXT = 65_536  # bytes
MOST_CATEGORIES = 64  # of an item, on average
CHUNK = 2048
SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


class CatalogError(Exception):
    """A catalog cannot be made or read; the message is one sentence."""


@dataclass(frozen=True, eq=False)
class Catalog:
    """All items in row order.

    Attributes:
        popularity: int64 [N], counts interactions of `popularity_counted_on`.
        attribute_texts: typed attributes of every item (`index.filters.stored`); empty where no item has any.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    popularity: RowArray
    popularity_counted_on: str
    attribute_texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse columns of different lengths, ids that stand twice, and an empty catalog."""
        lengths = (len(self.item_ids), len(self.titles), len(self.categories), len(self.popularity))
        if len(set(lengths)) != 1:
            raise CatalogError(
                "a catalog needs columns of one length; item_ids, titles, categories, popularity hold "
                + ", ".join(map(str, lengths))
            )
        if self.attribute_texts and len(self.attribute_texts) != len(self.item_ids):
            raise CatalogError(
                f"a catalog of {len(self.item_ids)} items needs as many attribute_texts; it has "
                f"{len(self.attribute_texts)}"
            )
        if not self.item_ids:
            raise CatalogError("a catalog needs at least one item; this one holds none")
        if len(self._row_of) != len(self.item_ids):
            seen: set[str] = set()
            twice = next(item for item in self.item_ids if item in seen or seen.add(item))  # type: ignore[func-returns-value]
            raise CatalogError(f"item id {twice!r} stands twice in the catalog; ids must be unique")

    def __len__(self) -> int:
        return len(self.item_ids)

    def row(self, item_id: str) -> int | None:
        """The row of an item id; None where the catalog has no such item."""
        return self._row_of.get(item_id)

    def rows(self, items: Sequence[object]) -> list[int] | None:
        """The rows of item ids; None where one is not an id of the catalog."""
        row_of = self._row_of
        try:
            return [row_of[item] for item in items]  # type: ignore[index]
        except (KeyError, TypeError):  # unknown; not even a text
            return None

    def titled(self, title: str) -> list[int]:
        """Rows, ascending, of the items with this title: `index.text.title_key` says which titles are equal."""
        wanted = title_key(title)
        hashes_N, rows_N = self._by_title
        first, last = (int(np.searchsorted(hashes_N, hash(wanted), side)) for side in SIDES)
        return [row for row in rows_N[first:last].tolist() if title_key(self.titles[row]) == wanted]

    def attributes(self, row: int) -> dict[str, AttributeValue]:
        """Typed values of an item by name."""
        return read_attributes(self.attribute_texts[row]) if self.attribute_texts else {}

    @cached_property
    def table(self) -> AttributeTable:
        """Categories and attributes of all items, as filters read them."""
        attributes = map(read_attributes, self.attribute_texts)
        return AttributeTable(len(self), attributes, self._rows_of_category)

    @cached_property
    def known_categories(self) -> tuple[str, ...]:
        """Every category some item has, in alphabetical order."""
        return tuple(sorted(self._rows_of_category))

    @cached_property
    def known_attributes(self) -> tuple[str, ...]:
        """Names of the attributes that some item has, in alphabetical order."""
        return tuple(sorted(set(self.table.kinds) - {CATEGORIES}))

    def search(self, query: str = "", limit: int = 20, offset: int = 0) -> list[int]:
        """Rows whose title holds every word of `query`, most popular first; "" finds all.

        Case, full and half width, and composed and decomposed characters are the same (NFKC and case folding).

        `offset` rows are passed over, then at most `limit` given: ask for one more than is shown to learn
        whether there are more.
        """
        if limit < 0 or offset < 0:
            raise ValueError(f"limit is {limit} and offset {offset}; both are 0 or more")
        words = tuple(dict.fromkeys(folded(query).split()))
        if not words:
            return [int(row) for row in self._by_popularity[offset : offset + limit]]
        matches: list[int] = []
        for row in self._by_popularity.tolist():
            if all(word in self._folded_titles[row] for word in words):
                matches.append(row)
                if len(matches) == offset + limit:
                    break
        return matches[offset:]

    def popular(self, categories: Sequence[str] = ()) -> RowArray:
        """Rows from the most popular down, ties in row order; of items in one of `categories`, if given."""
        if not categories:
            return self._by_popularity
        mask_N = np.zeros(len(self), dtype=bool)
        mask_N[self.in_categories(categories)] = True
        return self._by_popularity[mask_N[self._by_popularity]]

    def in_categories(self, categories: Iterable[str]) -> RowArray:
        """Rows, ascending, of items in at least one of `categories` (exact names), as `allowed` takes."""
        found = [self._rows_of_category[name] for name in categories if name in self._rows_of_category]
        mask_N = np.zeros(len(self), dtype=bool)  # a fraction of the time that sorting takes
        for rows in found:
            mask_N[rows] = True
        return np.flatnonzero(mask_N) if found else np.empty(0, dtype=np.int64)

    def write(self, path: Path | str) -> None:
        """Write a parquet file that any reader opens; `Catalog.read` gives back an equal catalog."""
        columns = {
            "row": range(len(self)),
            "item_id": self.item_ids,
            "title": self.titles,
            "categories": [list(names) for names in self.categories],
            "popularity": self.popularity,
            "popularity_counted_on": [self.popularity_counted_on] * len(self),
        }
        more: dict[str, pl.Series] = {}
        if self.attribute_texts:
            more[ATTRIBUTES] = pl.Series(self.attribute_texts, dtype=pl.String)
        pl.DataFrame(columns, schema=_COLUMNS).with_columns(**more).write_parquet(path)

    @classmethod
    def read(cls, path: Path | str) -> Catalog:
        """Read what `write` wrote; raises `CatalogError` naming the file and what it lacks."""
        try:
            content = Path(path).read_bytes()
        except FileNotFoundError:
            raise CatalogError(f"{path} is missing") from None
        except OSError as error:
            raise CatalogError(f"{path} cannot be read: {error}") from None
        return cls.parse(content, path)

    @classmethod
    def parse(cls, content: bytes, path: Path | str, size: int | None = None) -> Catalog:
        """The catalog in the bytes of a file that were read from `path`, of `size` items where that is known.

        Other threads get their turn all along: no single step is long, however many items there are.
        """
        try:
            return cls._of_frame(_frame(content, path, size), path)
        except CatalogError as error:
            raise CatalogError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None

    @classmethod
    def _of_frame(cls, frame: pl.DataFrame, path: Path | str) -> Catalog:
        counted_on = frame["popularity_counted_on"].unique().to_list()
        if len(counted_on) != 1:
            raise CatalogError(f"{path} counts popularity on {counted_on[:3]}; expected one part for all items")
        known: dict[tuple[str, ...], tuple[str, ...]] = {}  # equal ones are kept once
        categories = (tuple(names) for names in _values(frame["categories"]))
        found = cls(
            item_ids=tuple(_values(frame["item_id"])),
            titles=tuple(_values(frame["title"])),
            categories=tuple(known.setdefault(names, names) for names in categories),
            popularity=frame["popularity"].to_numpy().astype(np.int64),
            popularity_counted_on=counted_on[0],
            attribute_texts=tuple(_values(frame[ATTRIBUTES])) if ATTRIBUTES in frame.columns else (),
        )
        try:
            _ = found.table.kinds  # now, not for the first request with a filter
        except ValueError as error:
            raise CatalogError(f"{path} has an item whose attributes cannot be read: {error}") from None
        return found

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    @cached_property
    def _folded_titles(self) -> tuple[str, ...]:
        return tuple(map(folded, self.titles))

    @cached_property
    def _by_title(self) -> tuple[RowArray, RowArray]:
        """Hashes of all titles, ascending, and their rows: a sixth of the memory that a dictionary takes."""
        hashes_N = np.fromiter((hash(title_key(title)) for title in self.titles), np.int64, len(self))
        rows_N = np.argsort(hashes_N, kind="stable").astype(np.int64)
        return hashes_N[rows_N], rows_N

    @cached_property
    def _by_popularity(self) -> RowArray:
        order = np.argsort(-self.popularity, kind="stable").astype(np.int64)
        order.setflags(write=False)  # handed out as it is, so no caller may sort it in place
        return order

    @cached_property
    def _rows_of_category(self) -> dict[str, RowArray]:
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(self.categories):
            for name in names:
                rows.setdefault(name, []).append(row)
        return {name: np.array(found, dtype=np.int64) for name, found in rows.items()}


def _frame(content: bytes, path: Path | str, size: int | None) -> pl.DataFrame:
    """The table in the bytes of a parquet file, checked column by column; raises `CatalogError`."""
    try:
        rows = pl.scan_parquet(BytesIO(content)).select(pl.len()).collect().item()
        if size is not None and rows != size:
            raise CatalogError(f"{path} holds {rows} items, and {size} are expected")
        if rows > MOST_ITEMS:
            raise CatalogError(f"{path} holds {rows} items; at most {MOST_ITEMS} are read")
        frame = pl.read_parquet(content)
    except CatalogError:
        raise
    except BaseException as error:  # polars has classes of its own, and pyo3 one that is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CatalogError(f"{path} cannot be read as parquet: {first[:200]}") from None
    for name, kind in _COLUMNS.items():
        if frame.schema.get(name) != kind:
            raise CatalogError(f"{path} has column {name} of type {frame.schema.get(name)}; expected {kind}")
    if ATTRIBUTES in frame.columns and frame.schema[ATTRIBUTES] != pl.String:
        raise CatalogError(f"{path} has column {ATTRIBUTES} of type {frame.schema[ATTRIBUTES]}; expected String")
    read = [*_COLUMNS, *([ATTRIBUTES] if ATTRIBUTES in frame.columns else [])]
    if frame.select(read).null_count().sum_horizontal().item() or frame.is_empty():
        raise CatalogError(f"{path} holds no items or has empty cells; every column is needed for every item")
    if not (frame["row"].to_numpy() == np.arange(frame.height)).all():
        raise CatalogError(f"{path} has rows out of order; column row must run 0..{frame.height - 1}")
    _check_texts(frame, path)
    return frame


def _check_texts(frame: pl.DataFrame, path: Path | str) -> None:
    """A text that a file holds once can stand in every row: then each of them would be a text of its own here."""
    inner = frame["categories"].explode(empty_as_null=False)
    if inner.null_count():
        raise CatalogError(f"{path} has empty cells in categories; every category needs a name")
    if len(inner) > MOST_CATEGORIES * frame.height:
        raise CatalogError(f"{path} has {len(inner)} categories; at most {MOST_CATEGORIES} an item are read")
    texts = {name: frame[name] for name in ("item_id", "title", ATTRIBUTES) if name in frame.columns}
    for name, column in {**texts, "categories": inner}.items():
        longest = column.str.len_bytes().max()
        if isinstance(longest, int) and longest > LONGEST_TEXT:
            raise CatalogError(f"{path} has a text of {longest} bytes in {name}; at most {LONGEST_TEXT} are read")


def _values(column: pl.Series) -> Iterator[Any]:
    """The values of a column, so many at a time that other threads need not wait."""
    for start in range(0, len(column), CHUNK):
        yield from column.slice(start, CHUNK).to_list()
