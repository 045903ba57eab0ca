"""Six candidates of an id model in two windows of four labels; words of the small tokenizer are the labels."""

from __future__ import annotations

from testing.methods import Example
from testing.methods.tallrec import SETTINGS

LABELS = 'method.labels=["red","blue","old","new"]'
EXAMPLE = Example(
    "llamarec", (*SETTINGS, LABELS, "method.window=4", "method.negatives=retrieved", "method.sequences=12"),
    language_model=True, requires="sasrec",
)  # fmt: skip
