"""Yes or no, from what was chosen; two words of the small tokenizer are the answers."""

from __future__ import annotations

from testing.methods import SHORT, Example

SETTINGS = (*SHORT, "history.title_tokens=6", "history.limit=5", "method.validation_users=8", "method.candidates=6")
EXAMPLE = Example(
    "tallrec", (*SETTINGS, 'method.labels=["red","blue"]', "method.answers=choices", "method.sequences=12"),
    language_model=True,
)  # fmt: skip
