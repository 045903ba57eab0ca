"""Titles written freely, and grounded."""

from __future__ import annotations

from testing.methods import TITLES, Example

EXAMPLE = Example("bigrec", TITLES, language_model=True)
