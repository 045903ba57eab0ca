"""Recognition of tables: which of them hold interactions and which items, and which column has which role."""

from __future__ import annotations

from training.data.guessing.describe import as_options, describe
from training.data.guessing.roles import columns_given, guess
from training.data.guessing.together import interactions_and_items

__all__ = ["as_options", "columns_given", "describe", "guess", "interactions_and_items"]
