"""Amazon reviews of 2014, 5-core, into the folder format (McAuley et al., SIGIR 2015; He and McAuley, WWW 2016).

The review files are JSON, one review a line. The metadata files hold Python dictionaries in text form,
which `ast.literal_eval` reads as data without running anything. Times have day precision, and reviews of
one day stand in the order of product ids at the source.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from training.data.report import DataError

CATEGORIES = (
    "Amazon_Instant_Video", "Apps_for_Android", "Automotive", "Baby", "Beauty", "Books", "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics",
    "Grocery_and_Gourmet_Food", "Health_and_Personal_Care", "Home_and_Kitchen", "Kindle_Store", "Movies_and_TV",
    "Musical_Instruments", "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Sports_and_Outdoors",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
)  # fmt: skip
_ASIN = re.compile(r"""['"]asin['"]: ['"]([^'"]+)['"]""")


def dataset_name(category: str) -> str:
    """`Sports_and_Outdoors` is `amazon-sports-and-outdoors`."""
    return "amazon-" + category.lower().replace("_", "-")


def convert(reviews: Path, metadata: Path, category: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and interactions of one category from its 5-core reviews and its metadata, both gzipped."""
    interactions = _interactions(reviews)
    wanted = list(dict.fromkeys(interactions["item_id"]))
    described = _metadata(metadata, set(wanted))
    records = [_item(item_id, described.get(item_id, {}), category) for item_id in wanted]
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "item_id": pl.String, "title": pl.String, "categories": pl.List(pl.String), "brand": pl.String,
        "description": pl.String, "title_missing": pl.Boolean,
    }  # fmt: skip
    return pl.DataFrame(records, schema=schema), interactions


def _interactions(path: Path) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {"user_id": [], "item_id": [], "timestamp": [], "rating": [], "summary": []}
    for number, line in _lines(path):
        try:
            review = json.loads(line)
            row = (review["reviewerID"], review["asin"], int(review["unixReviewTime"]), float(review["overall"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path.name}:{number}: not a review ({error}): {line[:60]!r}") from None
        for column, value in zip(columns.values(), (*row, _clean(review.get("summary"))), strict=True):
            column.append(value)
    if not columns["user_id"]:
        raise DataError(f"{path.name} holds no reviews")
    return pl.DataFrame(columns)


def _metadata(path: Path, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Descriptions of the wanted products; only their lines are parsed, for the files hold far more."""
    found: dict[str, dict[str, Any]] = {}
    for number, line in _lines(path):
        asin = _ASIN.search(line)
        if not asin or asin[1] not in wanted:
            continue
        try:
            entry = json.loads(line) if line.startswith('{"') else ast.literal_eval(line)
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{path.name}:{number}: not a product ({error}): {line[:60]!r}") from None
        if isinstance(entry, dict) and entry.get("asin") in wanted:
            found[entry["asin"]] = entry
    return found


def _item(item_id: str, entry: dict[str, Any], category: str) -> dict[str, Any]:
    title = _clean(entry.get("title"))
    paths = entry.get("categories") or []
    names = [_clean(name) for path in paths if isinstance(path, list) for name in path]
    root = category.replace("_", " ").replace(" and ", " & ")
    return {
        "item_id": item_id,
        # The id must not stand in for a title: a model that reads would learn from it what it must not know.
        "title": title or f"Unnamed {root.lower()} product",
        "categories": [name for name in dict.fromkeys(names) if name and name not in (root, category)],
        "brand": _clean(entry.get("brand")) or None,
        "description": _clean(entry.get("description")) or None,
        "title_missing": not title,
    }


def _clean(text: Any) -> str:
    """Text with HTML entities undone and white space evened out; "" for anything that is no text."""
    return " ".join(html.unescape(text).split()) if isinstance(text, str) else ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path.name} cannot be unpacked: {error}") from None
