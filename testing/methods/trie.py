"""Titles along their trie."""

from __future__ import annotations

from testing.methods import TITLES, Example

EXAMPLE = Example("genre", TITLES, language_model=True)
