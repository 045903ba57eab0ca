"""The sentence of an explanation: by the language model of a loaded artifact, or the reason why there is none.

It is about the first recommended item. What it may say, and that it names no other item, is decided in
`modeling.generation.sentence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import structlog

from modeling.generation.sentence import Sentence
from service.errors import AnyoError, DeadlineExceeded, InvalidInput, ModelError, NotReady, Overloaded, TooLarge
from service.recommend.base import NamedArtifact

log = structlog.get_logger(__name__)

Reason = Literal["no_language_model", "nothing_to_name", "no_time", "busy", "failed", "withdrawn"]
MISSED: tuple[Reason, ...] = ("no_time", "busy", "failed")
"""Reasons that say that a sentence could have been."""
PASSING = (DeadlineExceeded, ModelError, NotReady, Overloaded, InvalidInput, TooLarge)


class Speaker(Protocol):
    """A recommender whose language model writes sentences."""

    @property
    def parts(self) -> NamedArtifact: ...

    async def say(self, item: str, history: Sequence[str], deadline: float) -> Sentence | None: ...


@dataclass(frozen=True, slots=True)
class WrittenSentence:
    """A sentence about the item in `row`, which names it and the items in these places of the history, or the reason
    why there is none; `by` is whose model was asked, None where there is no model."""

    row: int
    text: str | None = None
    named: tuple[int, ...] = ()
    reason: Reason | None = None
    by: NamedArtifact | None = None

    def of(self, rows: Sequence[int]) -> WrittenSentence:
        """Return that for an answer with these rows: an item that is not in it any more is not named."""
        return self if self.row in rows else replace(self, text=None, named=(), reason="withdrawn")


async def write_sentence(
    speaker: Speaker | None, row: int, item: str, history: Sequence[str], deadline: float
) -> WrittenSentence:
    """Return the sentence about an item, before `deadline`; whatever prevents it is the reason.

    `row` is the item's, `item` its title, `history` has the titles of what the retrieving model reads, oldest first.
    """
    if speaker is None:
        return WrittenSentence(row, reason="no_language_model")
    try:
        said = await speaker.say(item, history, deadline)
    except PASSING as error:
        log.warning("answering without a sentence", artifact=speaker.parts.name, error=error.message)
        return WrittenSentence(row, reason=_reason(error), by=speaker.parts)
    if said is None:
        return WrittenSentence(row, reason="nothing_to_name", by=speaker.parts)
    return WrittenSentence(row, said.text, said.named, by=speaker.parts)


def _reason(error: AnyoError) -> Reason:
    if isinstance(error, DeadlineExceeded):
        return "no_time"
    return "busy" if isinstance(error, (Overloaded, NotReady)) else "failed"
