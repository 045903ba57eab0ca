"""Scores of several continuations of one prompt, whose common beginning is read once.

A ranker asks a language model about many candidates after the same history. Read one by one, the history is computed
for every candidate. Here its keys and values are computed once; the continuations then stand one behind the other in
passes of a bounded size, each sees the common beginning and itself only (a block mask), and each begins at the position
where the common beginning ends. The logits are those of every text read alone.

`SharedPrefixScorer.likelihoods` scores whole texts instead, by their log probability under the model, and
`SharedPrefixScorer.choose` decodes along the trie of some texts; both read the prompt once too. With a `KeptPrompt` it
is read once for several calls.

Shape legend: C continuations, A asked tokens, T tokens of a pass, S entries of the cache, P states, V vocabulary, H
width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from modeling.generation.api import Turn
from modeling.generation.beam_search import GenerationError, Sees
from modeling.generation.consecutive import consecutive
from modeling.generation.factory import beam_search_for
from modeling.generation.search.decoder import KeysValues
from modeling.generation.token_inputs import TokenInputs
from modeling.inference.prepacked_linear import padded_length

OFFLINE_POSITIONS, SERVED_POSITIONS = 512, 64
"""Positions of one pass: alone, and where a dense request may wait for its end."""

Tokens = Sequence[int]


@dataclass(eq=False)
class KeptPrompt:
    """Keys and values of one prompt for several calls of a `SharedPrefixScorer`: the first call stores them.

    Attributes:
        layers: of the prefix and the prompt, by layer; empty before the first call.
    """

    layers: list[KeysValues] = field(default_factory=list, repr=False)


class SharedPrefixScorer:
    """Logits of a few tokens after each of several continuations of a prompt.

    Args:
        model: a Hugging Face model for causal language modelling.
        asked: the A tokens whose logits are wanted.
        prefix: token ids that begin every prompt; their keys and values are computed once, here.
        inputs: how tokens become inputs of the model, without features; None: by its token embeddings.
    """

    def __init__(self, model: nn.Module, asked: Tokens, prefix: Tokens = (), inputs: TokenInputs | None = None) -> None:
        self._search = beam_search_for(model, end_tokens=(), prefix=prefix, inputs=inputs)
        self._asked_A = torch.tensor(list(asked), device=self._search.device)

    @property
    def limit(self) -> int | None:
        """Most positions of the prefix, a prompt and a continuation; None: any number."""
        return self._search.limit

    @torch.inference_mode()
    def logits(
        self,
        prompt: Tokens,
        continuations: Sequence[Tokens],
        *,
        turn: Turn = nullcontext,
        kept: KeptPrompt | None = None,
    ) -> NDArray[np.float32]:
        """Logits [C, A] behind the last token of each continuation.

        Args:
            prompt: what follows the prefix and all continuations share.
            continuations: at least one token each.
            turn: held around every pass over the model.
            kept: of this prompt, whose keys and values further calls need; None: no further call.

        Raises:
            GenerationError: an empty continuation, or more positions than the model has.
        """
        self._check(prompt, continuations)
        most = OFFLINE_POSITIONS if turn is nullcontext else SERVED_POSITIONS
        longest = max(most, max(map(len, continuations))) + self._search.multiple
        cache = self._begun(prompt, longest, most, turn, kept)
        shared, found = int(cache.get_seq_length()), []
        for together in _passes(continuations, most):
            if len(together) == 1:
                found.append(self._read(together[0], cache, most, turn, last=True))
            else:
                with turn():
                    found.append(self._pass(together, cache, [[len(each) - 1] for each in together]))
            _cut(cache, shared)
        with turn():
            logits_CA = self._search.logits(torch.cat(found), self._asked_A)
        scores_CA: NDArray[np.float32] = logits_CA.cpu().numpy()
        return scores_CA

    @torch.inference_mode()
    def likelihoods(
        self,
        prompt: Tokens,
        branches: Sequence[tuple[Tokens, Sequence[Tokens]]],
        *,
        turn: Turn = nullcontext,
        kept: KeptPrompt | None = None,
    ) -> list[NDArray[np.float64]]:
        """Log probability [C] of each text in natural logarithms, summed over its tokens, for each branch.

        Args:
            prompt: what follows the prefix and all branches share.
            branches: what follows the prompt, at least one token, and the texts that may follow it, at least two
                tokens each (an item's name and its end).
            turn: held around every pass over the model.
            kept: see `logits`.

        Raises:
            GenerationError: an empty branch, a text that is too short, or more positions than the model has.
        """
        for begin, texts in branches:
            self._check(prompt, [begin])
            self._check([*prompt, *begin], [text[:-1] for text in texts])
        most = OFFLINE_POSITIONS if turn is nullcontext else SERVED_POSITIONS
        longest = max(len(begin) + max(most, max(map(len, texts))) for begin, texts in branches)
        cache = self._begun(prompt, longest + self._search.multiple, most, turn, kept)
        shared, found = int(cache.get_seq_length()), []
        for begin, texts in branches:
            found.append(self._text_scores(self._read(begin, cache, most, turn, last=True), texts, cache, most, turn))
            _cut(cache, shared)
        return found

    @torch.inference_mode()
    def choose(self, prompt: Tokens, texts: Sequence[Tokens], *, turn: Turn = nullcontext) -> int:
        """The place in ``texts`` of the one that greedy decoding writes where nothing else is allowed.

        Of the tokens that continue one of the texts the most probable one is taken. What has no alternative is not
        asked about, so there are as many passes as choices. A text that is the beginning of another ends there.

        Args:
            prompt: what follows the prefix, at least one token in all.
            texts: at least one token each.
            turn: held around every pass over the model.

        Raises:
            GenerationError: an empty text, or more positions than the model has.
        """
        self._check(prompt, texts)
        most = OFFLINE_POSITIONS if turn is nullcontext else SERVED_POSITIONS
        cache = self._search.new_cache(1, len(prompt) + max(map(len, texts)) + most + self._search.multiple)
        left, unread, at = list(range(len(texts))), list(prompt), 0
        while True:
            ended = next((place for place in left if len(texts[place]) == at), None)
            if ended is not None or len(left) == 1:
                return left[0] if ended is None else ended
            tokens = sorted({texts[place][at] for place in left})
            token = tokens[0]
            if len(tokens) > 1:
                state_1H = self._read(unread, cache, most, turn, last=True)
                with turn():
                    logits_1A = self._search.logits(state_1H, torch.tensor(tokens, device=self._search.device))
                token, unread = tokens[int(logits_1A.argmax())], []
            left = [place for place in left if texts[place][at] == token]
            unread, at = [*unread, token], at + 1

    def _check(self, prompt: Tokens, continuations: Sequence[Tokens]) -> None:
        if not continuations or not all(len(each) for each in continuations):
            raise GenerationError("a continuation is empty: give each at least one token")
        longest = len(self._search.prefix) + len(prompt) + max(map(len, continuations))
        if self.limit is not None and longest > self.limit:
            raise GenerationError(
                f"a history with a candidate takes {longest} positions and the model has {self.limit}: shorten the "
                "history, or give fewer candidates"
            )

    def _begun(self, prompt: Tokens, behind: int, most: int, turn: Turn, kept: KeptPrompt | None) -> Any:
        """A cache that holds the prompt, with room for ``behind`` positions behind it."""
        if kept is not None and kept.layers:
            return self._search.new_cache(1, len(prompt) + behind, kept.layers)
        cache = self._search.new_cache(1, len(prompt) + behind)
        self._read(prompt, cache, most, turn)
        if kept is not None and cache.get_seq_length():
            kept.layers = [(layer.keys.clone(), layer.values.clone()) for layer in cast(list[Any], cache.layers)]
        return cache

    def _text_scores(
        self, state_1H: Tensor, texts: Sequence[Tokens], cache: Any, most: int, turn: Turn
    ) -> NDArray[np.float64]:
        """Log probability [C] of each text behind what the cache holds, whose last state is given."""
        with turn():
            first_C = torch.tensor([text[0] for text in texts], device=self._search.device)
            scores_C = self._search.logits(state_1H)[0].log_softmax(-1)[first_C].double()
        begun, after = int(cache.get_seq_length()), []
        remaining = iter(texts)
        for together in _passes([text[:-1] for text in texts], most):
            told = [next(remaining)[1:] for _ in together]
            with turn():
                states_PH = self._pass(together, cache, [range(len(each)) for each in together])
                told_P = torch.tensor([token for each in told for token in each], device=self._search.device)
                lost_P = cross_entropy(self._search.logits(states_PH), told_P, reduction="none").double()
                after += [-each.sum() for each in lost_P.split([len(each) for each in told])]
            _cut(cache, begun)
        found_C: NDArray[np.float64] = (scores_C + torch.stack(after)).cpu().numpy()
        return found_C

    def _read(self, tokens: Tokens, cache: Any, most: int, turn: Turn, *, last: bool = False) -> Tensor:
        """Read one text behind what the cache holds, in passes; the state [1, H] at its end where it is wanted."""
        state_1H = torch.empty(0)
        for start in range(0, len(tokens), most):
            part = tokens[start : start + most]
            ends = last and start + most >= len(tokens)
            with turn():
                state_1H = self._pass([part], cache, [[len(part) - 1] if ends else []])
        return state_1H

    def _pass(self, blocks: Sequence[Tokens], cache: Any, wanted: Sequence[Sequence[int]]) -> Tensor:
        """Read blocks that see what the cache holds and themselves; states [P, H] at the places ``wanted`` of each.
        Padding, where matrices are packed for a multiple of rows, enters the cache no longer than that."""
        device, begun = self._search.device, int(cache.get_seq_length())
        lengths = [len(block) for block in blocks]
        total = sum(lengths)
        padded = padded_length(total, 1, self._search.multiple)
        if self.limit is not None and begun + padded > self.limit:
            padded = total
        ids_T = torch.zeros(padded, dtype=torch.long)
        ids_T[:total] = torch.tensor([token for block in blocks for token in block])
        block_T = torch.full((padded,), len(blocks))
        block_T[:total] = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor(lengths))
        place_T = torch.cat([torch.arange(length) for length in [*lengths, padded - total]])
        own_TT = (block_T[:, None] == block_T) & (place_T[:, None] >= place_T)
        mask_TS = torch.cat([torch.ones(padded, begun, dtype=torch.bool), own_TT], dim=1)
        positions_T = begun + place_T
        places_S = torch.cat([torch.arange(begun), positions_T])
        sees = Sees(positions_T[None].to(device), mask_TS[None, None].to(device), places_S[None].to(device))
        starts = np.cumsum([0, *lengths[:-1]])
        ends = [int(start) + place for start, places in zip(starts, wanted, strict=True) for place in places]
        states_PH = self._search.run_body(ids_T[None].to(device), cache, sees, torch.tensor(ends, dtype=torch.long))
        _cut(cache, begun + total)
        return states_PH


def _passes(continuations: Sequence[Tokens], most: int) -> Iterator[list[Tokens]]:
    """Continuations that are read together, in order: at most so many positions, or one alone."""
    for places in consecutive([len(each) for each in continuations], most):
        yield list(continuations[places.start : places.stop])


def _cut(cache: Any, positions: int) -> None:
    """Forget what came after so many positions."""
    for layer in cast(list[Any], cache.layers):
        layer.cut(positions)
