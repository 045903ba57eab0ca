"""The instruction prompt of BIGRec: an instruction, the titles of a history in quotation marks, and room for an answer.

    <instruction> "T1", "T2", ..., "Tn"
    Next: "T"<end>

The pieces are tokenized one by one and put together as tokens, in training and in serving alike. Against the original
there are no headings (a network that is tuned for one task needs none, and every request would pay for them), and the
opening quotation mark of the answer stands in the prompt: it is the same in every answer, and writing it would cost a
step of all beams.
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
    """Token ids of the pieces that are the same for every user.

    Attributes:
        prefix: the instruction, the beginning-of-sequence token included where the tokenizer adds one.
        quote: before and after every title.
        between: what stands between two titles, closing and opening marks included.
        respond: after the history, up to the opening quotation mark of the answer.
        end: closes the answer.
        instruction: what `prefix` says.
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
        """The pieces as ``tokenizer`` has them; ``instruction`` is one sentence, whose end leads to the titles.

        ``joined``: the marks between two titles are tokenized together, as in running text. A pretrained model knows
        them so; one that knows no such text learns sooner from marks that are always the same tokens.

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
        """What follows the prefix: a history, oldest first, and the request for an answer."""
        tokens: list[int] = []
        for number, name in enumerate(names):
            tokens += [*(self.between if number else self.quote), *name.tolist()]
        return [*tokens, *(self.quote if len(names) else ()), *self.respond]

    def answer(self, name: NDArray[np.int32]) -> list[int]:
        """What is to be written after that."""
        return [*name.tolist(), *self.quote, self.end]

    @property
    def answer_extra(self) -> int:
        """Tokens of an answer beside those of the title."""
        return len(self.quote) + 1

    def most_positions(self, items: int, title_tokens: int) -> int:
        """Positions of the longest prompt of ``items`` items and its answer."""
        each = title_tokens + max(len(self.between), 2 * len(self.quote))
        return len(self.prefix) + items * each + len(self.respond) + title_tokens + self.answer_extra


def _without_space(tokenizer: Any, piece: list[int]) -> tuple[int, ...]:
    """Without the space that some tokenizers put before every text: marks need none, and it would be a position."""
    return tuple(piece[1:] if len(piece) > 1 and tokenizer.decode(piece[:1]) == " " else piece)
