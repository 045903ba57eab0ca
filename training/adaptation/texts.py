"""The texts that a language model is adapted on: the titles of a catalog, and training histories as titles in a row.

Shape legend: B texts, T tokens.
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
from training.data.splits import FittedOn, Split
from training.recipe import Recipe

LONGEST = 128
"""Tokens of a text; of a longer one the end is read, the newest items."""
HELD_OUT, MOST_HELD_OUT = 0.1, 128


@dataclass(frozen=True)
class Texts:
    """Tokens of texts, and of a tenth that is not trained on: figures before and after are of those."""

    trained: list[NDArray[np.int64]]
    held_out: list[NDArray[np.int64]]


@dataclass(frozen=True)
class TextBatch:
    """Texts as tensors, padded on the right; ``mask_BT`` is 1 where there is a token."""

    tokens_BT: Tensor
    mask_BT: Tensor

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.int64]]) -> TextBatch:
        """One batch of texts, none of which is empty."""
        width = max(map(len, texts))
        tokens, mask = (np.zeros((len(texts), width), np.int64) for _ in range(2))
        for row, text in enumerate(texts):
            tokens[row, : len(text)], mask[row, : len(text)] = text, 1
        return cls(torch.from_numpy(tokens), torch.from_numpy(mask))


def texts_of(recipe: Recipe, split: Split, fitted_on: FittedOn, pieces: TextTokenizer, seed: int) -> Texts:
    """Titles and histories of the training part, in random order; texts of fewer than two tokens are left out."""
    before, after = pieces.wrap
    cut = [ids[: recipe.history.title_tokens] for ids in pieces(split.dataset.titles)]
    separator = pieces.fixed([SEPARATOR])[0]
    histories = [
        [token for row in rows[-recipe.history.limit :] for token in (*cut[row], *separator)]
        for rows in split.train_rows(fitted_on)
    ]
    whole = [np.asarray([*before, *ids[-LONGEST:], *after], np.int64) for ids in [*cut, *histories]]
    kept = [text for text in whole if len(text) > 1]
    order = np.random.default_rng([seed, 6]).permutation(len(kept)).tolist()
    aside = max(1, min(MOST_HELD_OUT, int(HELD_OUT * len(kept))))
    return Texts([kept[number] for number in order[aside:]], [kept[number] for number in order[:aside]])
