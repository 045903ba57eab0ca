"""One small example of every method, by file name: what the conformance suite trains and asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A recipe of a method that trains in seconds.

    Attributes:
        recipe: its name.
        settings: of ``--set``.
        language_model: whether it has a language model as backbone.
        requires: recipe of the artifact that it builds on; None: none.
    """

    recipe: str
    settings: tuple[str, ...]
    language_model: bool = False
    requires: str | None = None


SHORT = ("optimizer.epochs=1", "optimizer.positions=60")
TITLES = (*SHORT, "history.title_tokens=6", "history.limit=5", "method.validation_users=8", "method.beams=4")
CODES = (
    *SHORT, "method.validation_users=8", "backbone.width=32", "backbone.depth=1", "method.beams=4",
    "method.codes.size=4",
)  # fmt: skip
