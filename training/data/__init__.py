"""Data sets: reading and checking them, fetching them by name, splitting them."""

from __future__ import annotations

from training.data.dataset import Dataset, read_dataset, shuffle_ties
from training.data.fetched.named import known_names, load_dataset
from training.data.report import DataError, DataReport

__all__ = [
    "DataError",
    "DataReport",
    "Dataset",
    "known_names",
    "load_dataset",
    "read_dataset",
    "shuffle_ties",
]
