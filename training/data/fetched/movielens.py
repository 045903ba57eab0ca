"""MovieLens archives into the folder format (F. M. Harper and J. A. Konstan, ACM TiiS 5(4), 2015).

Every rating is an interaction, whatever its value. Users and items with fewer than five interactions are
left out, again and again until none is left. Titles get their article back in front ("Matrix, The (1999)"
becomes "The Matrix (1999)").
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import polars as pl

from training.data.report import DataError

CORE = 5

_ARTICLES = "The|A|An|La|Le|Les|Las|Los|El|Il|Lo|Gli|I|Der|Die|Das|Den|Det|De|Het|En|Ein|Eine|Un|Une|Una|Uma|O|Os|As|L'"
_TRAILING_ARTICLE = re.compile(rf"^(?P<name>.+), (?P<article>{_ARTICLES})$", re.IGNORECASE)
_NO_GENRES = "(no genres listed)"


def convert_1m(archive: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and interactions of `ml-1m.zip` (`::` between fields, Latin-1)."""
    movies = _double_colons(archive, "ml-1m/movies.dat", ("item_id", "title", "genres"))
    ratings = _double_colons(archive, "ml-1m/ratings.dat", ("user_id", "item_id", "rating", "timestamp"))
    return _tidy(movies, ratings)


def convert_latest_small(archive: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and interactions of `ml-latest-small.zip` (csv, UTF-8)."""
    movies = _csv(archive, "ml-latest-small/movies.csv", {"movieId": "item_id", "title": "title", "genres": "genres"})
    names = {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"}
    return _tidy(movies, _csv(archive, "ml-latest-small/ratings.csv", names))


def article_first(title: str) -> str:
    """Put a trailing article in front, in the title and in each bracketed other title; a year stays where it is."""
    parts = re.split(r"(\([^()]*\))", title)
    return "".join(_moved(part) for part in parts).strip()


def core(interactions: pl.DataFrame, least: int = CORE) -> pl.DataFrame:
    """Only users and items with at least `least` interactions among what is left."""
    while True:
        kept = interactions.filter((pl.len().over("user_id") >= least) & (pl.len().over("item_id") >= least))
        if kept.height == interactions.height:
            return kept
        interactions = kept


def _moved(part: str) -> str:
    opening, closing = ("(", ")") if part.startswith("(") else ("", "")
    inner = part[1:-1] if opening else part
    text = inner.strip()
    prefix = "a.k.a. " if text.lower().startswith("a.k.a. ") else ""
    found = _TRAILING_ARTICLE.match(text[len(prefix) :])
    if not found:
        return part
    article, name = found["article"], found["name"]
    joined = prefix + article + ("" if article.endswith("'") else " ") + name
    return opening + inner.replace(text, joined) + closing


def _tidy(movies: pl.DataFrame, ratings: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    interactions = core(ratings.select("user_id", "item_id", "timestamp", "rating"))
    interactions = interactions.with_columns(pl.col("timestamp").cast(pl.Int64), pl.col("rating").cast(pl.Float64))
    items = movies.filter(pl.col("item_id").is_in(interactions["item_id"].unique().implode())).select(
        "item_id",
        pl.col("title").map_elements(article_first, return_dtype=pl.String),
        pl.when(pl.col("genres") == _NO_GENRES).then(pl.lit("")).otherwise(pl.col("genres")).str.split("|")
        .list.eval(pl.element().filter(pl.element() != "")).alias("categories"),
    )  # fmt: skip
    return items, interactions


def _member(archive: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(archive) as zipped:
            return zipped.read(name)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{archive.name} is not the expected archive: {error}") from None


def _double_colons(archive: Path, member: str, names: tuple[str, ...]) -> pl.DataFrame:
    lines = _member(archive, member).decode("latin-1").splitlines()
    rows = [line.split("::") for line in lines if line]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(f"{member}:{number}: {len(row)} fields, expected {len(names)}: {row}")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _csv(archive: Path, member: str, names: dict[str, str]) -> pl.DataFrame:
    frame = pl.read_csv(_member(archive, member), infer_schema=False)
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise DataError(f"{member} has no column {missing[0]}; it has {frame.columns}")
    return frame.select(pl.col(old).alias(new) for old, new in names.items())
