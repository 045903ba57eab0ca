"""What all models that write items have in common: the names of a catalog, the generator, settings, and filling up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.generation import OnWriting, Turn, Wanted, WritePrompt, WriteSettings, Written
from modeling.generator import Counts, GenerationError, Generator
from modeling.prompt import FreeItem, TitleTokens
from modeling.spelling import Spelling
from modeling.whole_words import WholeWords

MOST_BEAMS = 100
PASS_POSITIONS = 64
"""Positions of one pass over a prompt: about a dense request's, so that a dense request beside it waits no longer."""
AS_EVALUATED = WriteSettings()


def pass_positions(turn: Turn) -> int | None:
    """Positions of one pass: bounded only where somebody may want the device between two of them."""
    return None if turn is nullcontext else PASS_POSITIONS


@dataclass(frozen=True)
class Names:
    """What the items of a catalog are called.

    Attributes:
        tokens: of every item, without the end token; none of them is empty.
        popular_N: all rows, most popular first: what an answer is filled up with, and who comes first where names are
            alike.
        spelling: what the tokens mean.
    """

    tokens: TitleTokens
    popular_N: NDArray[np.int64]
    spelling: Spelling

    @property
    def place_N(self) -> NDArray[np.int64]:
        """Place of every row in the order of popularity, from 0."""
        place_N = np.empty(len(self.popular_N), np.int64)
        place_N[self.popular_N] = np.arange(len(self.popular_N))
        return place_N


@dataclass
class Clock:
    """Seconds until the first step, and since."""

    started: float = field(default_factory=time.perf_counter)
    first: float | None = None

    def seconds(self) -> dict[str, float]:
        """Stages so far."""
        now = time.perf_counter()
        first = now if self.first is None else self.first
        return {"prefill": first - self.started, "decode": now - first}


@dataclass(frozen=True)
class Steps:
    """Figures of one search that its answers report."""

    counts: Counts
    clock: Clock
    after: Callable[[int, list[tuple[int, ...]]], None]


class Writer:
    """A `GenerativeModel` over a causal language model and the names of a catalog; how it reads, searches and grounds
    is the method's.

    Args:
        model: a Hugging Face model for causal language modelling, or an encoder-decoder one.
        names: of the catalog's items.
        end: the token that closes what is written; None: nothing does, all names have one length.
        prefix: begins every prompt.
        history_limit: newest items read.
        default: beams and tokens it was evaluated with.
        longest: most tokens that a text may have, its end included.
        whole_words: vectors of words, where the model was trained with them.
        slots_SH: inputs of prompts that are no words, see `Generator`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Names,
        *,
        end: int | None,
        prefix: Sequence[int],
        history_limit: int,
        default: WriteSettings,
        longest: int,
        whole_words: WholeWords | None = None,
        slots_SH: Tensor | None = None,
    ) -> None:
        self.model, self.names, self.end = model, names, end
        self.history_limit, self.default = history_limit, default
        self.reads = names.spelling.reads
        self.limit = WriteSettings(MOST_BEAMS, max(longest, default.max_new_tokens or 1))
        self.whole_words = whole_words
        self._generator = Generator.of_model(
            model, end_tokens=() if end is None else (end,), prefix=prefix, whole_words=whole_words, slots_SH=slots_SH
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What holds weights, by what it is for."""
        words = {} if self.whole_words is None else {"whole_words": self.whole_words}
        return {"weights": self.model, **words}

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free text as items of a history; raises `CannotReadText` where names are no text."""
        return self.names.spelling.read(titles)

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> WritePrompt:
        """See `GenerativeModel.prepare`."""
        raise NotImplementedError

    def write(
        self,
        prompts: Sequence[WritePrompt],
        wanted: Sequence[Wanted],
        settings: WriteSettings = AS_EVALUATED,
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[Written]:
        """See `GenerativeModel.write`."""
        raise NotImplementedError

    def name(self, item: int | FreeItem) -> NDArray[np.int32]:
        """Tokens of an item of a history."""
        found = item.tokens if isinstance(item, FreeItem) else self.names.tokens[item]
        assert found is not None, "a free title of another model"
        return found

    def _steps(self, on_step: OnWriting | None) -> Steps:
        clock = Clock()

        def after(step: int, best: list[tuple[int, ...]]) -> None:
            clock.first = clock.first or time.perf_counter()
            if on_step is not None:
                on_step(step, [self._shown(tokens) for tokens in best])

        return Steps(Counts(), clock, after)

    def _shown(self, tokens: Sequence[int]) -> str:
        """What was written so far, as a person reads it."""
        return self.names.spelling.text(tokens)

    def _checked(self, settings: WriteSettings) -> tuple[int, int]:
        """Beams and tokens that were asked for; raises `GenerationError`."""
        chosen = []
        for name in ("beams", "max_new_tokens"):
            asked, most = getattr(settings, name) or getattr(self.default, name), getattr(self.limit, name)
            if not 1 <= asked <= most:
                raise GenerationError(f"{name} is {asked}; allowed is 1 to {most}")
            chosen.append(asked)
        return chosen[0], chosen[1]


class Places:
    """The rows of one answer as they are found: eligible ones only, none twice, at most k."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.rows: list[int] = []
        self.scores: list[float] = []
        self._taken = set(wanted.exclude.tolist())
        self._only = None if wanted.allowed is None else set(wanted.allowed.tolist())

    @property
    def left(self) -> int:
        """Places not taken."""
        return self.wanted.k - len(self.rows)

    def offer(self, row: int, score: float) -> None:
        """Take a row unless it is not eligible or there is no place."""
        if self.left > 0 and row not in self._taken and (self._only is None or row in self._only):
            self._taken.add(row)
            self.rows.append(row)
            self.scores.append(score)

    def fill(self, order: Iterable[int]) -> int:
        """Give the places that are left to the first eligible rows of ``order``, scored below all others; how many."""
        before, lowest = len(self.rows), min(self.scores, default=0.0)
        for row in self._until_full(order):
            self.offer(row, lowest - 1 - (len(self.rows) - before))
        return len(self.rows) - before

    def _until_full(self, order: Iterable[int]) -> Iterator[int]:
        for row in order:
            if self.left <= 0:
                return
            yield row
