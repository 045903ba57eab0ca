"""The prompts of P5: five families of tasks put to one model as text, with identifiers of items and users inside it.

A prompt is a template with fields. Templates are read as the words of a small tokenizer made with the model; fields are
tokens of their own: the codes of items, the pieces of a user's number, the values that a rating may have. All of them
are one vocabulary:

    0 | codes of items, level by level | pieces of users' numbers | ratings | words

Of every family one template is held out: it is never trained on, and shows what the model makes of other wording. Its
words all occur in templates that are trained on, or it would hold tokens that nothing has taught.

A history is items, each followed by a mark, so that what is asked after the last mark is asked after every mark.
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
"""What follows the items of a history; the first one is served."""
YES, NO = "yes", "no"
SPACE = "Ġ"
"""How byte-level tokens write the space that begins a word."""


@dataclass(frozen=True)
class Template:
    """A prompt with ``{fields}``, and the field that answers it."""

    family: Family
    prompt: str
    answer: str

    @property
    def fields(self) -> set[str]:
        """What has to be known to ask and answer it."""
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
    """A prompt and its answer as tokens, the beginning of every text not included.

    Attributes:
        tokens: of both.
        answers: first and last place (exclusive) of what is to be written: the answer with its end, and before it the
            items of a history.
    """

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]


class Language:
    """What prompts are written in.

    Args:
        tokenizer: of words; a byte-level `tokenizers.Tokenizer`.
        item_sizes: codes of every level.
        user_sizes: of the pieces of a user's number.
        ratings: values that a rating may have, ascending; empty without ratings.
        end: closes an answer.
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
        """V."""
        return self._first_word + int(self.tokenizer.get_vocab_size())

    @cached_property
    def begins_V(self) -> Tensor:
        """Which tokens begin a word: the end, first codes and pieces, ratings, and what a space stands before."""
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
        """Text that comes again, of a template, as tokens."""
        self._pieces[text] = found = self.words(text)
        return found

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens of words say."""
        words = [token - self._first_word for token in tokens if token >= self._first_word]
        said: str = self.tokenizer.decode(words)
        return said.strip()

    def user(self, number: int) -> tuple[int, ...]:
        """A user's number as tokens; raises `ValueError` beyond what the pieces can say."""
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
        """Items and the marks after them, alternately."""
        after = self.piece(mark)
        return [part for name in names for part in (tuple(name.tolist()), after)]

    def ask(self, template: Template, fields: Mapping[str, Sequence[int]]) -> list[int]:
        """The tokens of a prompt."""
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
        """A prompt and its answer; ``history`` (see `history`) is its field of that name, whose items are to be written
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
        """Where the history begins."""
        return self.ask(template, {**fields, "history": [-1]}).index(-1)


def usable(family: Family, known: set[str]) -> list[Template]:
    """Trained templates of a family whose fields are known."""
    return [template for template in TRAINED if template.family == family and template.fields <= known]


def template_words() -> list[str]:
    """Everything that templates say, for the tokenizer."""
    said = [re.sub(r"\{\w+\}", "", template.prompt) for template in (*TRAINED, *HELD_OUT.values())]
    return [*said, *MARKS, YES, NO]


def longest_prompt(names: TitleTokens, items: int, text: int, candidates: int) -> int:
    """Positions that are enough for every prompt of at most ``items`` items, or ``candidates``, or ``text`` tokens."""
    name = int(np.diff(names.offsets).max(initial=1))
    return max((items + 2) * (name + 1), (candidates + 2) * (name + 1), 2 * text) + 48
