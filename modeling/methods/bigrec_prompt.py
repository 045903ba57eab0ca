"""The instruction prompt of BIGRec: an instruction, the titles of a history in quotation marks, and the answer's title.

    <instruction> "T1", "T2", ..., "Tn"
    Next: "T"<end>

Instruction, marks and titles are tokenized separately and concatenated, both in training and in serving. Differences to
the published prompt: there are no headings, which a model tuned for one task does not need and every request would have
to encode; and the answer's opening quotation mark is part of the prompt, which saves one decoding step of all beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling.backbone.loading import TextTokenizer

QUOTE, BETWEEN, RESPOND = '"', ",", "\nNext:"


@dataclass(frozen=True)
class InstructionPrompt:
    """Token ids of the constant parts of the prompt.

    Attributes:
        prefix: the instruction, with the beginning-of-sequence token if the tokenizer adds one.
        quote: before and after every title.
        between: between two titles, including closing and opening quotation marks.
        respond: after the history, up to and including the answer's opening quotation mark.
        end: ends the answer.
        instruction: text of `prefix`.
        joined: see `of`.
    """

    prefix: tuple[int, ...]
    quote: tuple[int, ...]
    between: tuple[int, ...]
    respond: tuple[int, ...]
    end: int
    instruction: str = ""
    joined: bool = False

    @classmethod
    def of(cls, tokenizer: Any, instruction: str, end: int, *, joined: bool = False) -> InstructionPrompt:
        """The prompt for a tokenizer; ``instruction`` is one sentence that introduces the titles.

        ``joined``: tokenize the marks between two titles together, as in running text, which a pretrained model has
        seen; a model trained from scratch learns faster if each mark is always the same token.

        Raises:
            ValueError: the instruction is empty.
        """
        if not instruction.strip():
            raise ValueError("history.instruction is empty: an instruction prompt begins with one")
        pieces = TextTokenizer(tokenizer)
        first, *others = pieces.fixed([instruction, QUOTE, BETWEEN, QUOTE + BETWEEN + QUOTE, RESPOND])
        quote, comma, together, respond = (_without_space(tokenizer, piece) for piece in others)
        between = together if joined else (*quote, *comma, *quote)
        return cls((*pieces.wrap[0], *first), quote, between, (*respond, *quote), end, instruction, joined)

    def read(self, names: Sequence[NDArray[np.int32]]) -> list[int]:
        """Tokens after the prefix: the history, oldest first, and the request for an answer."""
        tokens: list[int] = []
        for number, name in enumerate(names):
            tokens += [*(self.between if number else self.quote), *name.tolist()]
        return [*tokens, *(self.quote if len(names) else ()), *self.respond]

    def answer(self, name: NDArray[np.int32]) -> list[int]:
        """Tokens of the answer: the title, the closing quotation mark and the end token."""
        return [*name.tolist(), *self.quote, self.end]

    @property
    def answer_extra(self) -> int:
        """Number of tokens of an answer in addition to those of the title."""
        return len(self.quote) + 1

    def most_positions(self, items: int, title_tokens: int) -> int:
        """Upper bound on the positions of a prompt of ``items`` items and its answer."""
        each = title_tokens + max(len(self.between), 2 * len(self.quote))
        return len(self.prefix) + items * each + len(self.respond) + title_tokens + self.answer_extra


def _without_space(tokenizer: Any, piece: list[int]) -> tuple[int, ...]:
    """Tokens of a mark without the leading space token that some tokenizers add; it would cost a position."""
    return tuple(piece[1:] if len(piece) > 1 and tokenizer.decode(piece[:1]) == " " else piece)
