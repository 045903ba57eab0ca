"""What the commands share: opening a data set with its report, and errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import typer
from rich.console import Console

from index import CatalogError, IndexFolderError
from modeling.adapter import AdapterError
from modeling.artifact import ArtifactError
from modeling.backbone import BackboneError
from modeling.precision import PrecisionError
from training.data import DataError, Dataset, load_dataset, shuffle_ties
from training.recipes import RecipeError

OURS = (
    DataError,
    RecipeError,
    ArtifactError,
    BackboneError,
    AdapterError,
    PrecisionError,
    CatalogError,
    IndexFolderError,
)


@contextlib.contextmanager
def errors_as_one_line(console: Console) -> Iterator[None]:
    """Our own errors end a command with one line and status 2; anything else is a bug and keeps its trace."""
    try:
        yield
    except OURS as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def open_dataset(name: str, *, ties: str, seed: int, strict: bool, console: Console) -> Dataset:
    """Read a data set by name or folder and say what was found in it.

    Args:
        name: a known name, or a folder.
        ties: ``file`` or ``shuffle``: the order of interactions of a user at the same time.
        seed: of the shuffle.
        strict: refuse every oddity.
        console: the report goes here.
    """
    if ties not in ("file", "shuffle"):
        raise DataError(f"ties is {ties!r}; it is 'file' or 'shuffle'")
    dataset = load_dataset(name, cache_dir=Path("data"), strict=strict)
    if ties == "shuffle":
        dataset = shuffle_ties(dataset, seed)
    facts = dataset.statistics()
    console.print(
        f"data {dataset.name}: {facts['users']:,} users, {facts['items']:,} items, "
        f"{facts['interactions']:,} interactions"
    )
    for line in dataset.report.lines():
        console.print(line, highlight=False, markup=False)
    return dataset
