"""The trie of allowed texts, as arrays and as tensors on the device of a search.

Shape legend: P states asked about, C children of a state, S states of the trie.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modeling.generation.search.types import GenerationError


class Paths(Protocol):
    """Allowed continuations as plain arrays, as `index.trie.TokenTrie.arrays` gives them.

    State 0 is the start. The children of state s are ``tokens[starts[s] : starts[s] + counts[s]]``, and each leads to
    the state at the same place in ``targets``. Every path ends with an end token.
    """

    @property
    def starts(self) -> NDArray[np.int64]: ...
    @property
    def counts(self) -> NDArray[np.int64]: ...
    @property
    def tokens(self) -> NDArray[np.int64]: ...
    @property
    def targets(self) -> NDArray[np.int64]: ...


class TrieTensors:
    """The arrays of a trie on the device."""

    def __init__(self, paths: Paths, device: torch.device) -> None:
        self.paths = paths
        self.starts, self.counts, self.tokens, self.targets = (
            torch.as_tensor(array, device=device) for array in (paths.starts, paths.counts, paths.tokens, paths.targets)
        )
        if not int(self.counts[0]):
            raise GenerationError("the trie holds no text: add an item before searching it")

    def children(self, states_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, next states and validity of the children of states, [P, C] each; C is the largest number of them."""
        counts_P = self.counts[states_P]
        offsets_C = torch.arange(int(counts_P.max()), device=states_P.device)
        valid_PC = offsets_C < counts_P[:, None]
        places_PC = torch.where(valid_PC, self.starts[states_P][:, None] + offsets_C, 0)
        return self.tokens[places_PC], self.targets[places_PC], valid_PC

    @cached_property
    def determined(self) -> Tensor:
        """Whether a text in a state can go on in one way only, or not at all, bool [S]."""
        only = self.counts == 1
        last = torch.where(
            only, self.targets[torch.where(only, self.starts, 0)], torch.arange(len(only)).to(only.device)
        )
        while not torch.equal(further := last[last], last):
            last = further
        return self.counts[last] == 0

    def rest(self, state: int) -> tuple[list[int], int]:
        """The tokens that follow a determined state, and the state after them."""
        tokens: list[int] = []
        while self.paths.counts[state]:
            place = self.paths.starts[state]
            tokens.append(int(self.paths.tokens[place]))
            state = int(self.paths.targets[place])
        return tokens, state
