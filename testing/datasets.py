"""A small data set that a sequence model can learn, and a small model trained on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from rich.console import Console

from training.data.dataset import Dataset, read_dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
SMALL = ["items.dim=32", "backbone.width=32", "backbone.dropout=0.0", "history.dropout=0.0", "optimizer.positions=50"]


def write_dataset(folder: Path, *, users: int = 64, items: int = 50, seed: int = 0) -> Path:
    """Users walk round a ring of items in strides of their own, so the next item follows from the last two."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["red", "blue", "old", "new", "tall", "wide", "lamp", "chair", "rug", "bowl"]
    rows = [{"item_id": f"i{n}", "title": f"{words[n % 10]} {words[n // 10 % 10]} {n}"} for n in range(items)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = []
    for user in range(users):
        start, stride = int(rng.integers(items)), int(rng.integers(1, 4))
        events += [
            (f"u{user}", f"i{(start + stride * step) % items}", step) for step in range(int(rng.integers(5, 14)))
        ]
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    return folder


def ring_dataset(folder: Path, *, users: int = 64, items: int = 50) -> Dataset:
    """The data set of `write_dataset`, written to ``folder / "ring"`` and read."""
    return read_dataset(write_dataset(folder / "ring", users=users, items=items))


def trained_sasrec(dataset: Dataset, folder: Path, settings: Sequence[str] = (*SMALL, "optimizer.epochs=1")) -> Path:
    """Train a small SASRec; returns its artifact folder, ``folder / "sasrec"``."""
    run(get_recipe("sasrec", settings), dataset, RunOptions(out=folder / "sasrec"), QUIET)
    return folder / "sasrec"
