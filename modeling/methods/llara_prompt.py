"""Prompt and answer of LLaRA (`modeling.methods.llara`), and the rules that match a generated text with a candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modeling.backbone.loading import TextTokenizer
from modeling.spec import VectorPosition

PLACEHOLDER = 0
"""Slot number of the placeholder; item n has slot n + 1."""
BETWEEN, LINE, CHOOSE, RESPOND = ",", "\n", "\nChoose:\n", "\nNext:\n"

AssignedIdentifiers = tuple[NDArray[np.int32], int]
"""An item of a prompt: the tokens of its title, and its slot number."""


@dataclass(frozen=True)
class ChoicePrompt:
    """Token ids of the constant parts of the prompt.

    Attributes:
        prefix: the instruction, with the beginning-of-sequence token if the tokenizer adds one.
        between: between two items of the history.
        line: between two candidates.
        choose: before the candidates.
        respond: after the candidates.
        end: ends the answer.
        words: vocabulary size V; slot n has the token id V + n.
        slots: whether an item's slot is after or before its title.
        instruction: text of ``prefix``.
    """

    prefix: tuple[int, ...]
    between: tuple[int, ...]
    line: tuple[int, ...]
    choose: tuple[int, ...]
    respond: tuple[int, ...]
    end: int
    words: int
    slots: VectorPosition = "after"
    instruction: str = ""

    @classmethod
    def of(
        cls, tokenizer: Any, instruction: str, end: int, words: int, slots: VectorPosition = "after"
    ) -> ChoicePrompt:
        """The prompt for a tokenizer; raises ``ValueError`` if the instruction is empty."""
        if not instruction.strip():
            raise ValueError("history.instruction is empty: an instruction prompt begins with one")
        pieces = TextTokenizer(tokenizer)
        texts = [instruction, BETWEEN, LINE, CHOOSE, RESPOND]
        first, between, line, choose, respond = (tuple(each) for each in pieces.fixed(texts))
        return cls((*pieces.wrap[0], *first), between, line, choose, respond, end, words, slots, instruction)

    def items(self, items: Sequence[AssignedIdentifiers]) -> list[int]:
        """Tokens of a history: titles with their slots."""
        return self._joined(items, self.between)

    def _joined(self, items: Sequence[AssignedIdentifiers], between: tuple[int, ...]) -> list[int]:
        tokens: list[int] = []
        for number, (name, slot) in enumerate(items):
            title, vector = name.tolist(), [self.words + slot]
            tokens += [*(between if number else ()), *(title + vector if self.slots == "after" else vector + title)]
        return tokens

    def candidates(self, items: Sequence[AssignedIdentifiers]) -> list[int]:
        """Tokens after the history: the candidates and the request for an answer."""
        return [*self.choose, *self._joined(items, self.line), *self.respond]

    def answer(self, name: NDArray[np.int32]) -> list[int]:
        """Tokens of the answer: the title and the end token."""
        return [*name.tolist(), self.end]

    def most_candidate_positions(self, candidates: int, title_tokens: int) -> int:
        """Positions of ``candidates`` candidates with titles of ``title_tokens`` tokens, and of the request."""
        return len(self.choose) + candidates * (title_tokens + 1 + len(self.line)) + len(self.respond)

    def most_positions(self, items: int, candidates: int, title_tokens: int) -> int:
        """Upper bound on the positions of a prompt and its answer."""
        history = len(self.prefix) + items * (title_tokens + 1 + len(self.between))
        return history + self.most_candidate_positions(candidates, title_tokens) + title_tokens + 1


def held_titles(text: str, titles: Sequence[str]) -> list[int]:
    """Indices of the titles contained in the first line of a text, ignoring case: the published rule. A text is valid
    if it contains exactly one title."""
    line = _line(text).casefold()
    return [place for place, title in enumerate(titles) if title.casefold() in line]


def exact_title(text: str, titles: Sequence[str]) -> int | None:
    """Index of the first title equal to the first line of a text, or None: the strict rule."""
    line = _line(text)
    return next((place for place, title in enumerate(titles) if title == line), None)


def _line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
