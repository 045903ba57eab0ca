"""Trains one decoder on the prompts of all task families (P5).

The loss of a prompt is the mean over the tokens of its answer, its end included, and prompts weigh alike (Geng et al.
2022, section 3.2). In a decoder a history can be learned from as well as the answer, so every item of it counts as an
answer to the prompt up to there: a sequence is read once for all its prefixes.

Shape legend: B texts, T tokens, P tokens with a loss, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.encoder.prompt import TitleTokens
from modeling.generation.whole_word_embedding import WholeWordEmbedding, read
from modeling.methods.p5_prompts import TaskText
from training.loop.examples import Window
from training.methods.next_token import IGNORED, NextTokenBatch, NextTokenModule
from training.methods.p5_examples import TaskExamples

STEP = 1.5
"""Texts share a padded batch up to this ratio of their lengths: a history is ten times as long as a rating."""


@dataclass(frozen=True)
class P5Batch:
    """Texts of near lengths together, and the weights [P] of their tokens; ``count`` answers in all."""

    parts: tuple[tuple[NextTokenBatch, Tensor], ...]
    count: int


class P5Module(NextTokenModule):
    """Loss of the answers of all families.

    Args:
        model: a Hugging Face model for causal language modelling, with its head.
        names: codes of every item as tokens.
        end, dropout, hidden_dropout: see `NextTokenModule`.
        examples: draws the texts of a window.
        whole_words: vectors of words, which are trained too; None for a model without.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        end: int,
        dropout: float,
        hidden_dropout: float,
        examples: TaskExamples,
        whole_words: WholeWordEmbedding | None,
    ) -> None:
        super().__init__(model, names, end=end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.examples, self.whole_words = examples, whole_words

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """Vectors of tokens and of their words."""
        return read(self.model, ids_BT, self.whole_words)

    def collate(self, windows: Sequence[Window]) -> P5Batch:  # type: ignore[override]
        """The texts of all windows."""
        return self.batch([text for window in windows for text in self.examples.of(window)])

    def batch(self, texts: Sequence[TaskText]) -> P5Batch:
        """Texts as tokens, those of near lengths together."""
        ordered = sorted(texts, key=lambda text: len(text.tokens))
        groups = groupby(ordered, key=lambda text: int(np.log(len(text.tokens)) / np.log(STEP)))
        return P5Batch(
            tuple(self._padded(list(group)) for _, group in groups), sum(len(text.answers) for text in texts)
        )

    def forward(self, batch: P5Batch, progress: float = 0.0) -> Tensor:  # type: ignore[override]
        """Summed mean negative log probability of the answers."""
        head = cast(Any, self.model).get_output_embeddings()
        total = head.weight.new_zeros(())
        for part, weights_P in batch.parts:
            states_PH, targets_P = self.states(part)
            losses_P = F.cross_entropy(head(states_PH).float(), targets_P, reduction="none")
            total = total + (losses_P * weights_P.to(losses_P)).sum()
        return cast(Tensor, total)

    def _padded(self, texts: Sequence[TaskText]) -> tuple[NextTokenBatch, Tensor]:
        shape = (len(texts), max(len(text.tokens) for text in texts))
        ids_BT, targets_BT = np.full(shape, self.end, np.int64), np.full(shape, IGNORED, np.int64)
        weights_BT = np.zeros(shape, np.float32)
        for row, text in enumerate(texts):
            ids_BT[row, 1 : len(text.tokens)] = text.tokens[:-1]  # every text begins with the end token
            for start, stop in text.answers:
                targets_BT[row, start:stop] = text.tokens[start:stop]
                weights_BT[row, start:stop] = 1 / (stop - start)
        weights_P = torch.from_numpy(weights_BT[targets_BT != IGNORED])
        return NextTokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT)), weights_P
