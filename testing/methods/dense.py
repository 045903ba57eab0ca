"""A user encoder that reads the titles of items beside their ids."""

from __future__ import annotations

from testing.methods import SHORT, Example

EXAMPLE = Example("anyo", (*SHORT, "items.dim=16"), language_model=True)
