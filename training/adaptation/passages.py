"""Texts with the words that their summaries are to name: those of the text itself, and those of the next title.

A text is the title of one item, or titles in a row, oldest first, as in a prompt (`modeling.encoder.prompt`).

Shape legend: B texts, T tokens, K tokens of a summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.backbone.loading import TextTokenizer
from modeling.encoder.build import SEPARATOR
from training.adaptation.texts import HELD_OUT, LONGEST, MOST_HELD_OUT
from training.data.splits import FittedOn, Split
from training.recipe import Recipe, RecipeError

MOST = 20_000
"""Texts that are made, of all items of all histories with one after them."""
ALONE = 0.5
"""Share of texts that are the title of one item."""


@dataclass(frozen=True)
class Passage:
    """``text``: its tokens, the special one before it included. ``own``, ``following``: the distinct tokens of its
    titles and of the next title."""

    text: NDArray[np.int64]
    own: NDArray[np.int64]
    following: NDArray[np.int64]


@dataclass(frozen=True)
class Summaries:
    """Suffixes of a text: two prompts, each ending in ``count`` tokens whose states are pooled."""

    own: list[int]
    following: list[int]
    count: int


@dataclass(frozen=True)
class PassageBatch:
    """Texts with both prompts behind each, padded on the right.

    Attributes:
        tokens_BT, positions_BT: the second prompt has the positions of the first: both are as far from the text.
        sees_BTT: whether a token (first) sees another; the second prompt does not see the first.
        text_BT: the text without its prompts.
        own_BK, following_BK: places of the tokens whose states sum the text up.
        own, following: the tokens that are to be named.
    """

    tokens_BT: Tensor
    positions_BT: Tensor
    sees_BTT: Tensor
    text_BT: Tensor
    own_BK: Tensor
    following_BK: Tensor
    own: list[Tensor]
    following: list[Tensor]

    @classmethod
    def of(cls, passages: Sequence[Passage], behind: Summaries) -> PassageBatch:
        """One batch of texts, none of which is empty."""
        first, second = len(behind.own), len(behind.following)
        lengths_B = np.asarray([len(passage.text) for passage in passages])
        width = int(lengths_B.max()) + first + second
        tokens, positions = (np.zeros((len(passages), width), np.int64) for _ in range(2))
        for row, passage in enumerate(passages):
            length = len(passage.text)
            stop = length + first + second
            tokens[row, :stop] = np.concatenate([passage.text, behind.own, behind.following])
            positions[row, :stop] = [*range(length + first), *range(length, length + second)]
        places_T = np.arange(width)
        starts_B1, ends_B1 = lengths_B[:, None], lengths_B[:, None] + first
        stops_B1 = ends_B1 + second
        of_first_BT = (places_T >= starts_B1) & (places_T < ends_B1)
        of_second_BT = (places_T >= ends_B1) & (places_T < stops_B1)
        sees_BTT = np.tri(width, dtype=bool)[None] & ~(of_second_BT[:, :, None] & of_first_BT[:, None, :])
        sees_BTT &= (places_T < stops_B1)[:, None, :] | np.eye(width, dtype=bool)  # padding sees itself, for a softmax
        back_K = np.arange(behind.count) - behind.count
        arrays = tokens, positions, sees_BTT, places_T < starts_B1, ends_B1 + back_K, stops_B1 + back_K
        own = [torch.from_numpy(passage.own) for passage in passages]
        following = [torch.from_numpy(passage.following) for passage in passages]
        tokens_BT, positions_BT, seen_BTT, text_BT, own_BK, following_BK = map(torch.from_numpy, arrays)
        return cls(tokens_BT, positions_BT, seen_BTT, text_BT, own_BK, following_BK, own, following)


@dataclass(frozen=True)
class Passages:
    """Texts, and a tenth that is not trained on: figures before and after are of those."""

    trained: list[Passage]
    held_out: list[Passage]


def passages_of(recipe: Recipe, split: Split, fitted_on: FittedOn, pieces: TextTokenizer, seed: int) -> Passages:
    """Texts of the training part of histories, each with the item that came next there.

    Raises:
        RecipeError: there are fewer than two.
    """
    rng = np.random.default_rng([seed, 8])
    begin, separator = pieces.wrap[0], pieces.fixed([SEPARATOR])[0]
    titles = [ids[: recipe.history.title_tokens] for ids in pieces(split.dataset.titles)]
    histories = split.train_rows(fitted_on)
    users = np.repeat(np.arange(len(histories)), [max(0, len(rows) - 1) for rows in histories])
    starts = np.repeat(
        np.cumsum([0, *(max(0, len(rows) - 1) for rows in histories)])[:-1],
        np.bincount(users, minlength=len(histories)),
    )
    places = np.arange(len(users)) - starts + 1
    found: list[Passage] = []
    for number in rng.permutation(len(users))[:MOST]:
        rows, place = histories[users[number]], int(places[number])
        read = 1 if rng.random() < ALONE else int(rng.integers(1, recipe.history.limit + 1))
        shown = rows[max(0, place - read) : place].tolist()
        text = [token for row in shown for token in (*titles[row], *separator)][-LONGEST:]
        own = {token for row in shown for token in titles[row]} & set(text)
        following = set(titles[int(rows[place])])
        if own and following:
            found.append(
                Passage(*(np.asarray(each, np.int64) for each in ([*begin, *text], sorted(own), sorted(following))))
            )
    if len(found) < 2:
        raise RecipeError("method.adaptation.passage_steps needs histories of two items with titles: there are none")
    aside = max(1, min(MOST_HELD_OUT, int(HELD_OUT * len(found))))
    return Passages(found[aside:], found[:aside])
