"""Trains one decoder on the prompts of all task families (P5).

The loss of a prompt is the mean over the tokens of its answer, its end included, and prompts weigh alike (Geng et al.
2022, section 3.2). In a decoder a history can be learned from as well as the answer, so every item of it counts as an
answer to the prompt up to there: a sequence is read once for all its prefixes. An answer that is an item can have the
loss of its way along the trie of identifiers instead, which is the negative log probability of the item.

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
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.prompt import TitleTokens
from modeling.tasks import TaskText
from modeling.whole_words import WholeWords, read
from training.examples import Window
from training.objectives.children import ChildrenSoftmax
from training.task_examples import TaskExamples
from training.writing import IGNORED, WritingBatch, WritingModule, path_loss

STEP = 1.5
"""Texts share a padded batch up to this ratio of their lengths: a history is ten times as long as a rating."""


WORDS = -1
"""Stands for a state where what is written is not along the trie."""


@dataclass(frozen=True)
class TaskPart(WritingBatch):
    """Also the weight of each target [B, T], and the state of the trie before it [B, T], or ``WORDS``."""

    weights_BT: Tensor
    states_BT: Tensor


@dataclass(frozen=True)
class TaskBatch:
    """Texts of near lengths together; ``count`` answers in all."""

    parts: tuple[TaskPart, ...]
    count: int


class TaskModule(WritingModule):
    """Loss of the answers of all families.

    Args:
        model: a Hugging Face model for causal language modelling, with its head.
        names: codes of every item as tokens.
        end, dropout, hidden_dropout: see `WritingModule`.
        examples: draws the texts of a window.
        whole_words: vectors of words, which are trained too; None for a model without.
        children: divides the probabilities of an item among the tokens that may follow; None: among the whole
            vocabulary, as those of every other answer.
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
        whole_words: WholeWords | None,
        children: ChildrenSoftmax | None = None,
    ) -> None:
        super().__init__(model, names, end=end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.examples, self.whole_words, self.children_softmax = examples, whole_words, children
        rows = () if children is None else range(len(names))
        self._row_of = {tuple(names[row].tolist()): row for row in rows}

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """Vectors of tokens and of their words."""
        return read(self.model, ids_BT, self.whole_words)

    def collate(self, windows: Sequence[Window]) -> TaskBatch:  # type: ignore[override]
        """The texts of all windows."""
        return self.batch([text for window in windows for text in self.examples.of(window)])

    def batch(self, texts: Sequence[TaskText]) -> TaskBatch:
        """Texts as tokens, those of near lengths together."""
        ordered = sorted(texts, key=lambda text: len(text.tokens))
        groups = groupby(ordered, key=lambda text: int(np.log(len(text.tokens)) / np.log(STEP)))
        return TaskBatch(
            tuple(self._padded(list(group)) for _, group in groups), sum(len(text.answers) for text in texts)
        )

    def forward(self, batch: TaskBatch, progress: float = 0.0) -> Tensor:  # type: ignore[override]
        """Summed negative log probability of the answers: of an item along the trie, else the mean over tokens."""
        head = cast(Any, self.model).get_output_embeddings()
        total = head.weight.new_zeros(())
        for part in batch.parts:
            states_PH, targets_P = self.states(part)
            kept_BT = part.targets_BT != IGNORED
            weights_P, at_P = (each_BT[kept_BT].to(targets_P.device) for each_BT in (part.weights_BT, part.states_BT))
            words_P = at_P == WORDS
            losses_P = F.cross_entropy(head(states_PH[words_P]).float(), targets_P[words_P], reduction="none")
            total = total + (losses_P * weights_P[words_P]).sum()
            if (children := self.children_softmax) is not None:
                items_P = ~words_P
                total = total + path_loss(children, head, states_PH[items_P], targets_P[items_P], at_P[items_P])
        return cast(Tensor, total)

    def _padded(self, texts: Sequence[TaskText]) -> TaskPart:
        shape = (len(texts), max(len(text.tokens) for text in texts))
        ids_BT, targets_BT = np.full(shape, self.end, np.int64), np.full(shape, IGNORED, np.int64)
        weights_BT, states_BT = np.zeros(shape, np.float32), np.full(shape, WORDS, np.int64)
        for row, text in enumerate(texts):
            ids_BT[row, 1 : len(text.tokens)] = text.tokens[:-1]  # every text begins with the end token
            for start, stop in text.answers:
                answer = text.tokens[start:stop]
                targets_BT[row, start:stop], weights_BT[row, start:stop] = answer, 1 / len(answer)
                if (states := self._along(answer)) is not None:
                    states_BT[row, start:stop] = states
        if (children := self.children_softmax) is not None:
            along_BT = states_BT != WORDS
            targets_BT[along_BT & ~children.decides(states_BT.clip(min=0))] = IGNORED
        return TaskPart(*map(torch.from_numpy, (ids_BT, targets_BT, weights_BT, states_BT)))

    def _along(self, answer: tuple[int, ...]) -> NDArray[np.int64] | None:
        """The states of the trie before the tokens of an answer; None where the loss is over the vocabulary."""
        row = self._row_of.get(answer[:-1] if answer[-1] == self.end else answer)
        if row is None or self.children_softmax is None:
            return None
        return self.children_softmax.states(row)[: len(answer)]
