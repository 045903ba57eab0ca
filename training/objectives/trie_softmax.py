"""The loss of a name along a trie: at every token, softmax over those that may follow, and over no others.

With all tokens of the vocabulary in the sum, as published, a model spends itself on how names are spelt: after a few
tokens a name of a catalog goes on in one way only, which a search along the trie knows and the model has to learn.
Among the children alone, a token that has no alternative costs nothing, the probabilities of all names sum to one, and
what is trained is the probability of an item: the hierarchical softmax of Morin and Bengio 2005, over a tree of names.

Shape legend: P positions, L tokens of a name, A tokens that occur in names, V vocabulary, E edges of the trie.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.encoder.prompt import TitleTokens
from modeling.generation.beam_search import Paths

Ints = NDArray[np.int64]


class TrieSoftmax(nn.Module):
    """The states that the names of a catalog pass through, and the loss at them.

    Args:
        paths: the trie of the names as arrays (`index.trie.TokenTrie.arrays`).
        names: tokens of every item.
        end: the token that closes a name; None: nothing does.

    Raises:
        ValueError: a name is not in the trie.
    """

    alphabet_A: Tensor
    starts_S: Tensor
    counts_S: Tensor
    places_E: Tensor

    def __init__(self, paths: Paths, names: TitleTokens, end: int | None) -> None:
        super().__init__()
        self._counts = np.asarray(paths.counts)
        self._states = _states(paths, names, end)
        edges = _edges(paths)
        alphabet_A, place_E = np.unique(paths.tokens[edges], return_inverse=True)
        places_E = np.zeros(len(paths.tokens), np.int64)
        places_E[edges] = place_E
        for name, array in (
            ("alphabet_A", alphabet_A), ("starts_S", paths.starts), ("counts_S", paths.counts), ("places_E", places_E)
        ):  # fmt: skip
            self.register_buffer(name, torch.from_numpy(np.array(array, np.int64)), persistent=False)

    def states(self, row: int) -> Ints:
        """The state before each token of an item's name, its end included, [L]."""
        return self._states[row]

    def decides(self, states: Ints) -> NDArray[np.bool_]:
        """Whether more than one token may follow each state; otherwise the loss is zero."""
        return self._counts[states] > 1

    def forward(self, logits_PA: Tensor, targets_P: Tensor, states_P: Tensor) -> Tensor:
        """Summed negative log probability of ``targets_P``, tokens that may follow ``states_P``.

        Args:
            logits_PA: of the tokens of ``alphabet_A``, the only ones that occur in names.
        """
        counts_P = self.counts_S[states_P]
        rows_E = torch.repeat_interleave(torch.arange(len(states_P), device=states_P.device), counts_P)
        before_E = (counts_P.cumsum(0) - counts_P)[rows_E]
        nth_E = torch.arange(len(rows_E), device=rows_E.device) - before_E
        forbidden_PA = torch.ones_like(logits_PA, dtype=torch.bool)
        forbidden_PA[rows_E, self.places_E[self.starts_S[states_P][rows_E] + nth_E]] = False
        places_P = torch.searchsorted(self.alphabet_A, targets_P)
        return F.cross_entropy(logits_PA.masked_fill(forbidden_PA, -torch.inf), places_P, reduction="sum")


def _edges(paths: Paths) -> Ints:
    """Places of all edges, state by state."""
    counts = np.asarray(paths.counts)
    before = np.repeat(np.cumsum(counts) - counts, counts)
    edges: Ints = np.repeat(paths.starts, counts) + np.arange(len(before)) - before
    return edges


def _states(paths: Paths, names: TitleTokens, end: int | None) -> Sequence[Ints]:
    """Of every item, the states before its tokens: all names take a step at a time together."""
    edges = _edges(paths)
    parents, tokens = np.repeat(np.arange(len(paths.counts)), paths.counts), paths.tokens[edges]
    width = int(tokens.max()) + 1
    keys = parents * width + tokens
    order = np.argsort(keys)
    keys, targets = keys[order], paths.targets[edges][order]
    lengths_N = np.diff(names.offsets) + (end is not None)
    states_NL = np.zeros((len(names), int(lengths_N.max())), np.int64)
    state_N = np.zeros(len(names), np.int64)
    for place in range(states_NL.shape[1]):
        states_NL[:, place] = state_N
        going_M = np.flatnonzero(lengths_N > place)
        closing_M = going_M if end is None else going_M[lengths_N[going_M] > place + 1]
        token_N = np.full(len(names), -1 if end is None else end, np.int64)
        token_N[closing_M] = names.tokens[names.offsets[:-1][closing_M] + place]
        wanted_M = state_N[going_M] * width + token_N[going_M]
        found_M = np.searchsorted(keys, wanted_M).clip(max=len(keys) - 1)
        if (keys[found_M] != wanted_M).any():
            row = int(going_M[np.flatnonzero(keys[found_M] != wanted_M)[0]])
            raise ValueError(f"row {row} has name {names[row].tolist()}, which is not in the trie")
        state_N[going_M] = targets[found_M]
    return [states[:length] for states, length in zip(states_NL, lengths_N.tolist(), strict=True)]
