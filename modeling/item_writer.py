"""A language model that writes the items of a catalog as token sequences, along their trie.

Every item is read and written as the same tokens, closed by an end token: its title (GENRE, De Cao et al. 2021; here
over a user's history), or its semantic ID (TIGER, Rajput et al. 2023). A prompt is the items of a history one after
the other, so that one pass over a user's sequence trains the loss at every item, and the answer to it is simply the
next item.

A sequence's score is the sum of its log probabilities, not divided by its length: that is the probability of the item
under the model, whatever the number of its tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from modeling.generation import Generated, OnWriting, Turn, Wanted, WritePrompt, WriteSettings, Written
from modeling.generator import BeamSettings, Counts, GenerationError, Generator, Paths, Text
from modeling.prompt import FreeItem, TitleTokens
from modeling.spelling import Spelling

MOST_BEAMS = 100
PASS_POSITIONS = 64
"""Positions of one pass over a prompt: about a dense request's, so that a dense request beside it waits no longer."""
AS_EVALUATED = WriteSettings()


@dataclass(frozen=True)
class Names:
    """What the items of a catalog are called.

    Attributes:
        tokens: of every item, without the end token; none of them is empty.
        paths: their trie as arrays (`index.trie.TokenTrie.arrays`).
        items: the rows whose sequence ends in a state of it, best first; several where names are alike.
        popular_N: all rows, most popular first: what an answer is filled up with.
        spelling: what the tokens mean.
    """

    tokens: TitleTokens
    paths: Paths
    items: Callable[[int], list[int]]
    popular_N: NDArray[np.int64]
    spelling: Spelling


@dataclass
class _Clock:
    """Seconds until the first step, and since."""

    started: float = field(default_factory=time.perf_counter)
    first: float | None = None

    def seconds(self) -> dict[str, float]:
        now = time.perf_counter()
        first = now if self.first is None else self.first
        return {"prefill": first - self.started, "decode": now - first}


class ItemWriter:
    """A `GenerativeModel` over a causal language model and the names of a catalog.

    Args:
        model: a Hugging Face model for causal language modelling.
        names: of the catalog's items.
        end: the token that closes an item.
        history_limit: newest items read.
        default: beams and tokens it was evaluated with.
    """

    def __init__(self, model: nn.Module, names: Names, *, end: int, history_limit: int, default: WriteSettings) -> None:
        self.model, self.names, self.end = model, names, end
        self.history_limit, self.default = history_limit, default
        self.reads = names.spelling.reads
        longest = int(np.diff(names.tokens.offsets).max(initial=1)) + 1
        self.limit = WriteSettings(MOST_BEAMS, max(longest, default.max_new_tokens or 1))
        self._generator = Generator.of_model(model, end_tokens=[end], prefix=[end])

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free text as items of a history; raises `CannotReadText` where names are no text."""
        return self.names.spelling.read(titles)

    def prepare(self, history: Sequence[int | FreeItem]) -> WritePrompt:
        """Items oldest to newest, each closed by the end token; an empty history is the end token alone."""
        tokens: list[int] = []
        for item in history[-self.history_limit :]:
            found = item.tokens if isinstance(item, FreeItem) else self.names.tokens[item]
            assert found is not None, "a free title of another model"
            tokens += [*found.tolist(), self.end]
        return WritePrompt(tuple(tokens) or (self.end,))

    def write(
        self,
        prompts: Sequence[WritePrompt],
        wanted: Sequence[Wanted],
        settings: WriteSettings = AS_EVALUATED,
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[Written]:
        """See `GenerativeModel.write`. Only texts of the trie are written, so every one of them is an item.

        Items that are excluded or not allowed may take beams. What the beams did not reach is filled up with popular
        items, whose scores are below those of the written.
        """
        beams, longest = self._checked(settings)
        counts, clock = Counts(), _Clock()

        def after(step: int, best: list[tuple[int, ...]]) -> None:
            clock.first = clock.first or time.perf_counter()
            if on_step is not None:
                on_step(step, [self.names.spelling.text(tokens) for tokens in best])

        found = self._generator.search(
            [prompt.tokens for prompt in prompts],
            BeamSettings(beams=beams, max_new_tokens=longest, length_penalty=0.0),
            paths=self.names.paths,
            on_step=after,
            counts=counts,
            turn=turn,
            pass_positions=PASS_POSITIONS,
        )
        seconds, started = clock.seconds(), time.perf_counter()
        new = counts.new_tokens // len(prompts)
        written = [
            self._answer(texts, prompt, want, new, seconds)
            for texts, prompt, want in zip(found, prompts, wanted, strict=True)
        ]
        seconds |= {"ground": time.perf_counter() - started, "search": 0.0}
        return written

    def _checked(self, settings: WriteSettings) -> tuple[int, int]:
        chosen = []
        for name in ("beams", "max_new_tokens"):
            asked, most = getattr(settings, name) or getattr(self.default, name), getattr(self.limit, name)
            if not 1 <= asked <= most:
                raise GenerationError(f"{name} is {asked}; allowed is 1 to {most}")
            chosen.append(asked)
        return chosen[0], chosen[1]

    def _answer(
        self, texts: Sequence[Text], prompt: WritePrompt, wanted: Wanted, new: int, seconds: dict[str, float]
    ) -> Written:
        taken = set(wanted.exclude.tolist())
        only = None if wanted.allowed is None else set(wanted.allowed.tolist())
        generated: list[Generated] = []
        rows: list[int] = []
        scores: list[float] = []
        for text in texts:
            named = self.names.items(text.state) if text.ended else []
            generated.append(
                Generated(
                    self.names.spelling.text(text.tokens),
                    text.score,
                    bool(named),
                    named[0] if named else None,
                    0.0 if named else None,
                    self.names.spelling.code(text.tokens),
                )
            )
            for row in named:
                if len(rows) < wanted.k and row not in taken and (only is None or row in only):
                    taken.add(row)
                    rows.append(row)
                    scores.append(text.score)
        filled = list(self._popular(wanted.k - len(rows), taken, only))
        lowest = min(scores, default=0.0)
        scores += [lowest - 1 - place for place in range(len(filled))]
        return Written(
            np.array(rows + filled, np.int64),
            np.array(scores, np.float32),
            len(filled),
            tuple(generated),
            prompt.length,
            new,
            seconds,
        )

    def _popular(self, count: int, taken: set[int], only: set[int] | None) -> Iterator[int]:
        if count <= 0:
            return
        for row in self.names.popular_N.tolist():
            if row not in taken and (only is None or row in only):
                yield row
                count -= 1
                if not count:
                    return
