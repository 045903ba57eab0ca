"""Training texts of P5's task families, drawn for the windows of users' sequences.

Every window gives one text of the sequential family, with a random template. Texts of the other families are drawn for
a share of its items, so that tasks are mixed in proportion to the interactions. Only the training part of a split is
read, since windows contain items of that part only.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from modeling.encoder.prompt import TitleTokens
from modeling.generation.item_tokenizer import CODE_END, CodeTokenizer
from modeling.methods.p5_prompts import (
    FAMILIES,
    MARKS,
    NO,
    YES,
    Family,
    Language,
    TaskText,
    Template,
    template_words,
    usable,
)
from modeling.spec import Section
from training.data.dataset import Dataset
from training.data.splits import FittedOn, Split
from training.item_ids.identifiers import numbered
from training.loop.examples import Window
from training.recipe import RecipeError

MOST_RATINGS = 101
WORDS = "words.json"
USER_PIECES = 100
"""Size of a digit group of user numbers: two decimal digits, similar to the tokens of SentencePiece."""
NEEDS: dict[Family, tuple[str, ...]] = {
    "sequential": (), "rating": ("rating",), "direct": (), "explanation": ("review",), "review": ("review",),
}  # fmt: skip
"""Columns of interactions that a family needs. The review family also needs a summary or a rating."""


class TasksSpec(Section):
    """Task families of P5 on which one model is trained jointly.

    The share of a family (``rating``, ``direct``, …) is its number of prompts per target item of the sequential family.
    """

    families: tuple[Family, ...] | None = Field(None, description="None: all families the data has columns for")
    rating: float = Field(0.1, ge=0, description="share of the rating family")
    direct: float = Field(0.2, ge=0, description="share of the direct family")
    explanation: float = Field(0.1, ge=0, description="share of the explanation family")
    review: float = Field(0.1, ge=0, description="share of the review family")
    candidates: int = Field(10, ge=2, description="candidates in prompts of the direct family")
    text_tokens: int = Field(32, ge=1, description="maximum tokens of a review or a summary")
    vocabulary: int = Field(2000, ge=400, description="size of the word vocabulary")
    whole_words: bool = Field(True, description="use the whole-word embedding; false is a control")

    @model_validator(mode="after")
    def _the_sequential_family_is_served(self) -> TasksSpec:
        if self.families is not None and "sequential" not in self.families:
            raise ValueError(
                f"method.tasks.families={list(self.families)} lacks 'sequential', which is selected on and served"
            )
        return self

    def has(self, *families: str) -> bool:
        """Whether any of the given families may be trained."""
        return self.families is None or any(family in self.families for family in families)


SHARES = {family: TasksSpec.model_fields[family] for family in FAMILIES if family in TasksSpec.model_fields}
"""Fields of `TasksSpec` that hold a family's share; the sequential family has none."""


def columns_of(dataset: Dataset) -> set[str]:
    """Names of the interaction columns that are not empty."""
    return {name for name in dataset.columns.columns if dataset.columns[name].null_count() < dataset.n_interactions}


def families_of(spec: TasksSpec, dataset: Dataset) -> tuple[Family, ...]:
    """The families to train: the requested ones, or all for which the data set has the columns.

    Raises:
        RecipeError: columns are missing for a family that was requested by name or by a share.
    """
    known = columns_of(dataset)
    able = [family for family in FAMILIES if set(NEEDS[family]) <= known]
    if "review" in able and not usable("review", {"review", *known}):
        able.remove("review")
    shared = [family for family, field in SHARES.items() if getattr(spec, family) not in (0, field.default)]
    for family in (*(spec.families or ()), *shared):
        if family not in able:
            needed = " and ".join(NEEDS[family]) + (", with rating or summary" if family == "review" else "")
            raise RecipeError(
                f"task family {family!r} needs interactions with {needed}; {dataset.name} has "
                f"{', '.join(sorted(known)) or 'neither ratings nor reviews'}: families it can train are "
                f"{', '.join(able)}"
            )
    return tuple(family for family in FAMILIES if family in (able if spec.families is None else spec.families))


def rating_values(split: Split) -> tuple[float, ...]:
    """Ratings that occur in the training part, ascending.

    Raises:
        RecipeError: there are more than ``MOST_RATINGS`` distinct ratings; each needs a token.
    """
    if "rating" not in columns_of(split.dataset):
        return ()
    given = {value for user in range(split.dataset.n_users) for value in ratings_of(split, user)}
    values = sorted(value for value in given if value is not None)
    if len(values) > MOST_RATINGS:
        raise RecipeError(
            f"ratings have {len(values)} different values; the rating family writes at most {MOST_RATINGS}"
        )
    return tuple(float(value) for value in values)


def ratings_of(split: Split, user: int) -> list[float | None]:
    """Ratings of one user's training part; None for an empty cell."""
    found: list[float | None] = split.dataset.columns["rating"][_training_part(split, user)].to_list()
    return found


def _training_part(split: Split, user: int) -> slice:
    start = int(split.dataset.offsets_U1[user])
    return slice(start, start + int(split.train_lengths_U[user]))


def user_numbers(users: int) -> NDArray[np.int64]:
    """A number for each user [U], in random order, since the order of the file may carry information."""
    return np.random.default_rng(users).permutation(users)


def train_words(split: Split, vocabulary: int) -> Any:
    """A byte-level BPE tokenizer trained on the templates and on the reviews of the training part."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    reviews = list(_texts(split))
    # repeated as often as there are reviews, so that every word of a template becomes a single token
    templates = itertools.chain.from_iterable(itertools.repeat(template_words(), 1 + len(reviews)))
    backend.train_from_iterator(itertools.chain(templates, reviews), trainer)
    return backend


def _texts(split: Split) -> Iterator[str]:
    for name in sorted({"review", "summary"} & columns_of(split.dataset)):
        column = split.dataset.columns[name]
        for user in range(split.dataset.n_users):
            yield from (text for text in column[_training_part(split, user)].to_list() if text)


class TaskExamples:
    """Draws the training texts of windows.

    Args:
        language: encodes prompts as tokens.
        names: codes of every item as tokens.
        families: to draw from.
        spec: shares and sizes.
        split: whose interactions are used.
        fitted_on: part of the split that is trained on.

    Attributes:
        mean_rating: of the training part; NaN without ratings.
    """

    def __init__(
        self,
        language: Language,
        names: TitleTokens,
        families: Sequence[Family],
        spec: TasksSpec,
        split: Split,
        fitted_on: FittedOn = "train",
    ) -> None:
        self.language, self.names, self.spec, self.split = language, names, spec, split
        data = split.dataset
        self._users = user_numbers(data.n_users)
        self._columns = {name: data.columns[name].to_list() for name in columns_of(data)}
        self._fitted_on: FittedOn = fitted_on
        self._shares = {family: getattr(spec, family) for family in families if family != "sequential"}
        given = [value for user in range(data.n_users) for value in ratings_of(split, user)] if language.ratings else []
        self.mean_rating = float(np.mean([value for value in given if value is not None])) if given else math.nan

    def of(self, window: Window) -> list[TaskText]:
        """The texts of a window in this epoch; deterministic for a window and its seed."""
        rng = np.random.default_rng(window.draw)
        texts = [self.sequential(window, rng)]
        items = len(window.rows)
        for family, share in self._shares.items():
            for place in rng.integers(items, size=rng.poisson(share * (items - 1))).tolist():
                if (text := self._other(family, window, place, rng)) is not None:
                    texts.append(text)
        return texts

    def sequential(self, window: Window, rng: np.random.Generator) -> TaskText:
        """The text of a window with a random template of the sequential family."""
        template = _one(usable("sequential", {"history", "item", "chosen"}), rng)
        mark = _one(MARKS, rng)
        names = [self.names[row] for row in window.rows.tolist()]
        history = self.language.history(names[:-1], mark)
        if template.answer == "item":
            return self.language.text_of(template, {}, names[-1].tolist(), history)
        row, answer = self._maybe(int(window.rows[-1]), window.user, rng)
        return self.language.text_of(template, {"item": self._name(row)}, answer, history)

    def fields(self, user: int, row: int) -> dict[str, Sequence[int]]:
        """Tokens of the fields ``user`` and ``item``."""
        return {"user": self.user(user), "item": self._name(row)}

    def user(self, user: int) -> tuple[int, ...]:
        """Tokens of a user."""
        return self.language.user(int(self._users[user]))

    def known(self, interaction: int) -> dict[str, Any]:
        """Column values of an interaction by name, empty cells left out."""
        found = {name: column[interaction] for name, column in self._columns.items()}
        return {name: value for name, value in found.items() if value not in (None, "")}

    def text(self, words: str) -> tuple[int, ...]:
        """Tokens of a text, truncated to ``spec.text_tokens``."""
        return self.language.words(words)[: self.spec.text_tokens]

    def of_interaction(self, template: Template, user: int, row: int, known: dict[str, Any]) -> TaskText | None:
        """The text of a template for one interaction with the column values ``known``; None if the answer is empty or
        its rating does not occur in training."""
        fields = self.fields(user, row)
        if "review" in template.fields:
            fields["review"] = self.text(known["review"])
        if template.answer == "rating" and float(known["rating"]) not in self.language.ratings:
            return None  # a value that the training part does not have
        answer = (
            self.language.rating(float(known["rating"]))
            if template.answer == "rating"
            else self.text(known["review" if template.answer == "explanation" else template.answer])
        )
        return self.language.text_of(template, fields, answer) if len(answer) else None

    def _other(self, family: Family, window: Window, place: int, rng: np.random.Generator) -> TaskText | None:
        """A text of another family for the item at an index of a window; None if the interaction lacks the columns."""
        row, user = int(window.rows[place]), window.user
        known = self.known(int(self.split.dataset.offsets_U1[user]) + window.start + place)
        if family == "direct":
            return self._direct(row, user, rng)
        has = {"user", "item", *known}
        if known.get("rating") in self.language.ratings:
            has |= {"stars", "agreed", "liked"}
        if "review" in known:
            has |= {"explanation"}
        if not (templates := usable(family, has)):
            return None
        template = _one(templates, rng)
        if template.answer in ("agreed", "liked"):
            return self._yes_or_no(template, user, row, float(known["rating"]), rng)
        return self.of_interaction(template, user, row, known)

    def _yes_or_no(self, template: Template, user: int, row: int, rating: float, rng: np.random.Generator) -> TaskText:
        fields = self.fields(user, row)
        stated = rating if rng.random() < 0.5 else _one(self.language.ratings, rng)
        agreed = stated == rating if template.answer == "agreed" else rating >= self.mean_rating
        fields["stars"] = self.language.rating(stated)
        return self.language.text_of(template, fields, self.language.piece(YES if agreed else NO))

    def _direct(self, row: int, user: int, rng: np.random.Generator) -> TaskText:
        template = _one(usable("direct", {"user", "item", "chosen", "candidates"}), rng)
        if template.answer == "chosen":
            asked, answer = self._maybe(row, user, rng)
            return self.language.text_of(template, self.fields(user, asked), answer)
        rows = [row, *self.others(user, self.spec.candidates - 1, rng)]
        names = [self.names[rows[at]] for at in rng.permutation(len(rows))]
        candidates = [token for part in self.language.history(names) for token in part]
        fields = {"user": self.user(user), "candidates": candidates}
        return self.language.text_of(template, fields, self._name(row))

    def others(self, user: int, count: int, rng: np.random.Generator) -> list[int]:
        """Up to ``count`` items that the user did not choose in the part that is fitted on, drawn uniformly; the rest
        of the sequence is not read."""
        chosen = set(self.split.train_row(user, self._fitted_on).tolist())
        free = self.split.dataset.n_items - len(chosen)
        found: dict[int, None] = {}
        while len(found) < min(count, free):
            row = int(rng.integers(self.split.dataset.n_items))
            if row not in chosen:
                found[row] = None
        return list(found)

    def _maybe(self, row: int, user: int, rng: np.random.Generator) -> tuple[int, tuple[int, ...]]:
        """An item and the answer, each with probability 0.5: this item and yes, or another item and no."""
        if rng.random() < 0.5 and (others := self.others(user, 1, rng)):
            return others[0], self.language.piece(NO)
        return row, self.language.piece(YES)

    def _name(self, row: int) -> list[int]:
        found: list[int] = self.names[row].tolist()
        return found


def _one(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    return choices[int(rng.integers(len(choices)))]


def language_of(split: Split, spelling: CodeTokenizer, vocabulary: int, work: Path) -> Language:
    """The vocabulary of prompts for a data set and item codes."""
    user_sizes = (numbered(np.arange(split.dataset.n_users), USER_PIECES).max(0) + 1).tolist()
    return Language(
        _words(split, vocabulary, work / WORDS), item_sizes=spelling.sizes, user_sizes=user_sizes,
        ratings=rating_values(split), end=CODE_END,
    )  # fmt: skip


def _words(split: Split, vocabulary: int, kept: Path) -> Any:
    """The word tokenizer: trained once for a run, then read from the file ``kept``."""
    from tokenizers import Tokenizer

    if not kept.exists():
        part = kept.with_name(f"{kept.name}.{os.getpid()}")
        part.write_text(train_words(split, vocabulary).to_str(), encoding="utf-8")
        part.replace(kept)
    return Tokenizer.from_str(kept.read_text("utf-8"))
