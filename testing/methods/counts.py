"""Neighbours of items, counted."""

from __future__ import annotations

from testing.methods import Example

EXAMPLE = Example("item_knn", ("method.last=3",))
