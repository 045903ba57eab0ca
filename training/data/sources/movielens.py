"""MovieLens and MovieTweetings: 100K (`u.data`, `u.item`), 1M and 10M (`.dat`), the later csv files."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import polars as pl

from training.data.fetched.movielens import article_first
from training.data.importing.content import is_epoch, share
from training.data.importing.table import Guess, Table

_GENRES_OF_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
_FIRST_GENRE = 6  # the column before which u.item has id, title, two dates and an address
_CUTS = re.compile(r"^(u[1-5ab]\.(base|test)|r[ab1-5]\.(train|test))$")


def recognise(table: Table) -> Guess | None:
    """Ratings, films, or one of the files beside them that say nothing more."""
    name, columns = PurePosixPath(table.name).name, table.frame.columns
    if _CUTS.match(name):
        return Guess(table, "other", by="MovieLens", notes=("a part of u.data or ratings.dat",))
    if name == "u.item" and table.frame.width >= _FIRST_GENRE + len(_GENRES_OF_100K) - 1:
        return _films_of_100k(table)
    if {"userId", "movieId"} <= set(columns):
        if "rating" not in columns:
            return Guess(table, "other", by="MovieLens", notes=("tags, no ratings",))
        roles = {"user": "userId", "item": "movieId", "rating": "rating", "time": "timestamp"}
        return Guess(table, "interactions", {k: v for k, v in roles.items() if v in columns}, "MovieLens")
    if {"movieId", "title", "genres"} <= set(columns):
        return _films(table, "movieId", "title", "genres")
    if table.header:
        return None
    if name == "movies.dat" and table.frame.width == 3:
        return _films(table, *columns)
    if table.frame.width == 4 and _looks_rated(table):
        certain = name in ("u.data", "ratings.dat")
        doubt = "the file has no header; taken as user, item, rating, time by what is in the columns"
        roles = dict(zip(("user", "item", "rating", "time"), columns, strict=True))
        return Guess(table, "interactions", roles, "MovieLens", doubts=() if certain else (doubt,))
    return None


def _looks_rated(table: Table) -> bool:
    user, item, rating, time = (table.frame.to_series(at).head(1000) for at in range(4))
    numbers = share(user, r"^\d+$") == share(item, r"^\d+$") == 1
    return numbers and share(rating, r"^(10|\d(\.\d)?)$") == 1 and is_epoch(time)


def _films(table: Table, item: str, title: str, genres: str) -> Guess:
    fixed = table.frame.with_columns(
        pl.col(title).map_elements(article_first, return_dtype=pl.String),
        pl.col(genres).replace("(no genres listed)", None),
    )
    roles = {"item": item, "title": title, "categories": genres}
    return Guess(table.with_frame(fixed), "items", roles, "MovieLens", separator="|")


def _films_of_100k(table: Table) -> Guess:
    flags = table.frame.columns[_FIRST_GENRE - 1 : _FIRST_GENRE - 1 + len(_GENRES_OF_100K)]
    named = [pl.when(pl.col(flag) == "1").then(pl.lit(name)) for flag, name in zip(flags, _GENRES_OF_100K, strict=True)]
    frame = table.frame.select(
        pl.col("column_1").alias("item"),
        pl.col("column_2").map_elements(article_first, return_dtype=pl.String).alias("title"),
        pl.concat_list(named[1:]).list.drop_nulls().alias("categories"),
    )
    return Guess(table.with_frame(frame), "items", {name: name for name in frame.columns}, "MovieLens")
