"""Data sets by name: fetched from their official places, or generated, and kept in the folder format.

What has been made once lies in `<cache>/<name>` and is used again. A folder is written under another name
and renamed, so a crash leaves none that is half done. Interactions of one user at the same time are put in
a random, seeded order when the folder is written: at these sources they stand by item id, which must tell a
model nothing.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from training.data.dataset import Dataset, Ties, read_dataset
from training.data.fetched import amazon, demo, movielens
from training.data.fetched.download import Checksum, DownloadError, download, fetch_text, md5_in
from training.data.report import DEFAULT_TOLERANCE, DataError, Tolerances

GROUPLENS = "https://files.grouplens.org/datasets/movielens"
AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
DEFAULT_CACHE = Path("data")
TIES_SEED = 0
SOURCE_FILE = "source.json"

Frames = tuple[pl.DataFrame, pl.DataFrame]


@dataclass(frozen=True)
class Source:
    """Source of a named data set: files under `base`, and a function that converts them to items and interactions."""

    base: str
    files: tuple[str, ...]
    convert: Callable[..., Frames]
    terms: str
    md5_page: bool = False  # the publisher puts `<file>.md5` beside each file
    md5: str = ""  # known for good: the file never changes


_GROUPLENS_TERMS = "research use, see the README in the archive; cite Harper and Konstan, ACM TiiS 5(4), 2015"
_AMAZON_TERMS = "no licence is stated; research use; cite McAuley et al., SIGIR 2015, and He and McAuley, WWW 2016"

SOURCES: dict[str, Source] = {
    "movielens-1m": Source(
        GROUPLENS, ("ml-1m.zip",), movielens.convert_1m, _GROUPLENS_TERMS, md5="c4d9eecfca2ab87c1945afe126590906"
    ),
    "movielens-small": Source(
        GROUPLENS, ("ml-latest-small.zip",), movielens.convert_latest_small, _GROUPLENS_TERMS, md5_page=True
    ),
} | {
    amazon.dataset_name(category): Source(
        AMAZON,
        (f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"),
        partial(amazon.convert, category=category),
        _AMAZON_TERMS,
    )
    for category in amazon.CATEGORIES
}


def known_names() -> list[str]:
    """Every name `load_dataset` knows."""
    return ["demo", *sorted(SOURCES)]


def load_dataset(
    name_or_folder: str | Path,
    cache_dir: Path = DEFAULT_CACHE,
    *,
    strict: bool = False,
    tolerance: float | Tolerances = DEFAULT_TOLERANCE,
    ties: Ties = "file",
    seed: int = 0,
    console: Console | None = None,
) -> Dataset:
    """A data set by name (fetched or generated into `cache_dir` the first time) or from a folder.

    A known name wins over a folder of that name; write `./name` for the folder. The other arguments are
    those of `read_dataset`. Raises `DataError`.
    """
    if str(name_or_folder) in known_names():
        folder = ensure_named(str(name_or_folder), cache_dir, console=console)
    elif Path(name_or_folder).is_dir():
        folder = Path(name_or_folder)
    else:
        raise DataError(
            f"{str(name_or_folder)!r} is neither a folder nor a known data set; known: demo, movielens-1m, "
            f"movielens-small, {', '.join(name for name in known_names() if name.startswith('amazon-'))}"
        )
    return read_dataset(folder, strict=strict, tolerance=tolerance, ties=ties, seed=seed)


def ensure_named(
    name: str,
    cache_dir: Path,
    *,
    folder: Path | None = None,
    console: Console | None = None,
    sources: dict[str, Source] | None = None,
) -> Path:
    """The folder of a named data set (`<cache>/<name>` by default), made if it is not there.

    Downloads are kept in `<cache>/downloads`. Raises `DataError` or `DownloadError`.
    """
    console = console or Console(stderr=True)
    folder = folder or cache_dir / name
    if _is_made(folder, name):
        return folder
    unfinished = folder.parent / f".{folder.name}.{os.getpid()}.part"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        if name == "demo":
            console.print("demo: writing the invented catalog and its readers", highlight=False)
            demo.write_demo(unfinished)
            origin: dict[str, Any] = {"generator": demo.GENERATOR, "seed": demo.SEED}
        else:
            origin = _fetch_and_convert(name, (sources or SOURCES)[name], unfinished, cache_dir, console)
        (unfinished / SOURCE_FILE).write_text(json.dumps({"name": name, **origin}, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _is_made(folder: Path, name: str) -> bool:
    """Whether the data set is there; a demo by another generator is made again, what is not ours is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        origin = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = {}
    if origin.get("name") != name:
        raise DataError(
            f"{folder} is there but is not the data set {name} ({SOURCE_FILE} does not say so); "
            f"give that path as --data to use it as it is, or move it away"
        )
    return bool(name != "demo" or origin.get("generator") == demo.GENERATOR)


def _fetch_and_convert(name: str, source: Source, folder: Path, cache_dir: Path, console: Console) -> dict[str, Any]:
    """Download, check and convert; returns what `source.json` says about it."""
    paths: list[Path] = []
    origin: list[dict[str, str]] = []
    for file in source.files:
        url = f"{source.base}/{file}"
        path = cache_dir / "downloads" / file
        try:
            published, trust = _published(source, url)
            sha256 = download(url, path, published=published, console=console)
        except DownloadError as error:
            raise DownloadError(
                f"{name}: {error}. Without a network, give --data a folder with items and interactions instead"
            ) from None
        paths.append(path)
        origin.append({"url": url, "sha256": sha256, "checked_against": trust})
    console.print(f"{name}: converting ({source.terms})", highlight=False)
    items, interactions = source.convert(*paths)
    write_folder(folder, items, interactions)
    ties = f"interactions of one user at the same time are in random order, seed {TIES_SEED}"
    return {"files": origin, "terms": source.terms, "ties": ties}


def _published(source: Source, url: str) -> tuple[Checksum | None, str]:
    """The publisher's checksum, and in words what the file is checked against."""
    if source.md5:
        return Checksum("md5", source.md5), "the publisher's md5"
    if source.md5_page and (page := fetch_text(url + ".md5")) is not None:
        return md5_in(page, url + ".md5"), "the publisher's md5, fetched beside the file"
    return None, "the first download (the publisher states no checksum)"


def write_folder(folder: Path, items: pl.DataFrame, interactions: pl.DataFrame) -> None:
    """Write `items.jsonl` and `interactions.csv.gz` (`.parquet` where rows hold text), sorted by user, time, chance."""
    chance = np.random.default_rng(TIES_SEED).random(interactions.height)
    ordered = interactions.with_columns(pl.Series("_chance", chance)).sort("user_id", "timestamp", "_chance")
    ordered = ordered.drop("_chance")
    folder.mkdir(parents=True, exist_ok=True)
    items.sort("item_id").write_ndjson(folder / "items.jsonl")
    if "summary" in ordered.columns:
        ordered.write_parquet(folder / "interactions.parquet")
    else:
        content = ordered.write_csv().encode()
        (folder / "interactions.csv.gz").write_bytes(gzip.compress(content, mtime=0))
