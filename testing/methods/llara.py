"""One of four candidates of an id model."""

from __future__ import annotations

from testing.methods import TITLES, Example

SETTINGS = tuple(setting for setting in TITLES if not setting.startswith("method.beams"))
EXAMPLE = Example("llara", (*SETTINGS, "method.candidates=4"), language_model=True, requires="sasrec")
