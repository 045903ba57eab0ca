"""Prompts of P5: five task families as text for one model, with identifiers of items and users as tokens.

A prompt is a template with fields. The text of a template is encoded by a small word tokenizer that is trained with the
model; fields have tokens of their own: the codes of items, the digit groups of user numbers, the possible ratings. All
of them form one vocabulary:

    0 | item codes, level by level | digit groups of user numbers | ratings | words

One template of every family is held out: it is never trained on, and measures how the model copes with other wording.
All its words occur in other templates, so that it has no untrained tokens.

A history is a list of items, each followed by a separator, so that every item after a separator is a training target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.encoder.prompt import TitleTokens

Family = Literal["sequential", "rating", "direct", "explanation", "review"]
FAMILIES: tuple[Family, ...] = get_args(Family)
MARKS = (",", "->")
"""Separators after the items of a history; the first one is used when serving."""
YES, NO = "yes", "no"
SPACE = "Ġ"
"""Byte-level encoding of the space that begins a word."""


@dataclass(frozen=True)
class Template:
    """A prompt with ``{fields}``, and the field that is its answer."""

    family: Family
    prompt: str
    answer: str

    @property
    def fields(self) -> set[str]:
        """Fields needed for the prompt and its answer."""
        return {*re.findall(r"\{(\w+)\}", self.prompt), self.answer}


SERVED = Template("sequential", "chosen in order : {history}", "item")
TRAINED = (
    SERVED,
    Template("sequential", "continue this list of items : {history}", "item"),
    Template("sequential", "this user chose {history} and then chose", "item"),
    Template("sequential", "after {history} the next item is", "item"),
    Template("sequential", "history : {history} which item is next ?", "item"),
    Template("sequential", "after {history} will this user choose {item} ?", "chosen"),
    Template("rating", "rating {user} gave {item} :", "rating"),
    Template("rating", "{user} and {item} : which rating ?", "rating"),
    Template("rating", "did {user} rate {item} with {stars} ?", "agreed"),
    Template("rating", "does {user} like {item} ?", "liked"),
    Template("direct", "will {user} choose {item} ?", "chosen"),
    Template("direct", "is {item} for {user} ?", "chosen"),
    Template("direct", "{user} may choose from {candidates} :", "item"),
    Template("direct", "which of {candidates} will {user} choose ?", "item"),
    Template("explanation", "why did {user} choose {item} ?", "explanation"),
    Template("explanation", "explain {item} to {user} :", "explanation"),
    Template("review", "summary of {review} :", "summary"),
    Template("review", "in short : {review} summary :", "summary"),
    Template("review", "rating of {review} :", "rating"),
    Template("review", "{review} : which rating ?", "rating"),
)
HELD_OUT: dict[Family, Template] = {
    "sequential": Template("sequential", "items this user chose in order : {history}", "item"),
    "rating": Template("rating", "which rating {user} gave {item} ?", "rating"),
    "direct": Template("direct", "choose {item} for {user} ?", "chosen"),
    "explanation": Template("explanation", "explain to {user} why {item} :", "explanation"),
    "review": Template("review", "which rating of {review} :", "rating"),
}


@dataclass(frozen=True)
class TaskText:
    """A prompt and its answer as tokens, without the token that begins every text.

    Attributes:
        tokens: of prompt and answer.
        answers: half-open token ranges with a loss: the items of a history, then the answer with its end token.
    """

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]


class Language:
    """Vocabulary of prompts: encodes words, users, ratings and templates as tokens.

    Args:
        tokenizer: byte-level `tokenizers.Tokenizer` of words.
        item_sizes: number of codes per level.
        user_sizes: number of tokens for each digit group of a user's number.
        ratings: possible ratings, ascending; empty without ratings.
        end: token that ends an answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        item_sizes: Sequence[int],
        user_sizes: Sequence[int],
        ratings: Sequence[float],
        end: int,
    ) -> None:
        self.tokenizer, self.end = tokenizer, end
        self.item_sizes, self.user_sizes, self.ratings = tuple(item_sizes), tuple(user_sizes), tuple(ratings)
        self._first_user = 1 + sum(self.item_sizes)
        self._first_rating = self._first_user + sum(self.user_sizes)
        self._first_word = self._first_rating + len(self.ratings)
        self._pieces: dict[str, tuple[int, ...]] = {}

    @property
    def vocabulary(self) -> int:
        """Vocabulary size V."""
        return self._first_word + int(self.tokenizer.get_vocab_size())

    @cached_property
    def begins_V(self) -> Tensor:
        """Whether each token begins a word, bool [V]: the end token, first codes and digit groups, ratings, and words
        after a space."""
        flags = [True]
        for sizes in (self.item_sizes, self.user_sizes):
            flags += [level == 0 for level, size in enumerate(sizes) for _ in range(size)]
        flags += [True] * len(self.ratings)
        words = (self.tokenizer.id_to_token(token) for token in range(self.tokenizer.get_vocab_size()))
        return torch.tensor([*flags, *(word.startswith(SPACE) for word in words)], dtype=torch.bool)

    def words(self, text: str) -> tuple[int, ...]:
        """Text as tokens."""
        if (known := self._pieces.get(text)) is not None:
            return known
        return tuple(self._first_word + token for token in self.tokenizer.encode(text, add_special_tokens=False).ids)

    def piece(self, text: str) -> tuple[int, ...]:
        """Text of a template as tokens; the result is cached."""
        self._pieces[text] = found = self.words(text)
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """Text of the word tokens among ``tokens``; other tokens are left out."""
        words = [token - self._first_word for token in tokens if token >= self._first_word]
        said: str = self.tokenizer.decode(words)
        return said.strip()

    def user(self, number: int) -> tuple[int, ...]:
        """A user's number as tokens; raises `ValueError` if it is negative or has too many digits."""
        rest, tokens = number, []
        firsts = list(accumulate(self.user_sizes, initial=self._first_user))
        for first, size in zip(reversed(firsts[:-1]), reversed(self.user_sizes), strict=True):
            rest, code = divmod(rest, size)
            tokens.append(first + code)
        if rest or number < 0:
            raise ValueError(f"user number {number} cannot be written with pieces of {self.user_sizes}")
        return tuple(reversed(tokens))

    def rating(self, value: float) -> tuple[int, ...]:
        """A rating as its token."""
        return (self._first_rating + self.ratings.index(value),)

    @property
    def rating_tokens(self) -> list[int]:
        """The tokens of all ratings, ascending."""
        return list(range(self._first_rating, self._first_word))

    def history(self, names: Sequence[NDArray[np.int32]], mark: str = MARKS[0]) -> list[tuple[int, ...]]:
        """Items and the separators after them, alternately."""
        after = self.piece(mark)
        return [part for name in names for part in (tuple(name.tolist()), after)]

    def ask(self, template: Template, fields: Mapping[str, Sequence[int]]) -> list[int]:
        """Tokens of a prompt; ``fields``: the tokens of each field."""
        tokens: list[int] = []
        for part in re.split(r"(\{\w+\})", template.prompt):
            if part.startswith("{"):
                tokens += fields[part[1:-1]]
            elif part.strip():
                tokens += self.piece(part.strip())
        return tokens

    def text_of(
        self,
        template: Template,
        fields: Mapping[str, Sequence[int]],
        answer: Sequence[int],
        history: Sequence[Sequence[int]] = (),
    ) -> TaskText:
        """A prompt and its answer. ``history``: result of `history` for the field of that name, whose items have a loss
        too."""
        spans = []
        if history:
            begin = self._place(template, fields)
            edges = [begin, *(begin + length for length in accumulate(map(len, history)))]
            spans = [(edges[at], edges[at + 1]) for at in range(0, len(history), 2)]
            fields = {**fields, "history": [token for part in history for token in part]}
        tokens = self.ask(template, fields)
        spans.append((len(tokens), len(tokens) + len(answer) + 1))
        return TaskText((*tokens, *answer, self.end), tuple(spans))

    def _place(self, template: Template, fields: Mapping[str, Sequence[int]]) -> int:
        """Token index of the first item of the history."""
        return self.ask(template, {**fields, "history": [-1]}).index(-1)


def usable(family: Family, known: set[str]) -> list[Template]:
    """Training templates of a family whose fields are all in ``known``."""
    return [template for template in TRAINED if template.family == family and template.fields <= known]


def template_words() -> list[str]:
    """Texts of all templates without fields, on which the tokenizer is trained."""
    said = [re.sub(r"\{\w+\}", "", template.prompt) for template in (*TRAINED, *HELD_OUT.values())]
    return [*said, *MARKS, YES, NO]


def longest_prompt(names: TitleTokens, items: int, text: int, candidates: int) -> int:
    """Upper bound on the positions of prompts of ``items`` items, ``candidates`` candidates or ``text`` text tokens."""
    name = int(np.diff(names.offsets).max(initial=1))
    return max((items + 2) * (name + 1), (candidates + 2) * (name + 1), 2 * text) + 48
