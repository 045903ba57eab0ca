"""Common part of all generative models of items: the names of a catalog, the generator, settings, and filling up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from modeling.artifact.part_names import Part
from modeling.encoder.prompt import FreeItem, TitleTokens
from modeling.encoder.title_check import check_title_tokens, sample_rows
from modeling.generation.api import (
    GeneratedList,
    GenerationPrompt,
    GenerationSettings,
    GenerativeModel,
    Hypothesis,
    ListQuery,
    OnWriting,
    Turn,
)
from modeling.generation.beam_search import BeamSearch, BeamSettings, Counts, GenerationError, OnStep, Paths, Text
from modeling.generation.factory import beam_search_for
from modeling.generation.item_tokenizer import ItemTokenizer
from modeling.generation.token_inputs import TokenInputs

ITEM_TOKENS = "item_tokens.safetensors"
MOST_BEAMS = 100
PASS_POSITIONS = 64
"""Positions of one pass over a prompt: about a dense request's, so that a dense request beside it waits no longer."""
AS_EVALUATED = GenerationSettings()


@dataclass(frozen=True)
class ItemIdentifiers:
    """Names of the items of a catalog.

    Attributes:
        tokens: of every item, without the end token; none of them is empty.
        popular_N: all rows, most popular first: what an answer is filled up with, and who comes first where names are
            alike.
        spelling: what the tokens mean.
    """

    tokens: TitleTokens
    popular_N: NDArray[np.int64]
    spelling: ItemTokenizer

    @property
    def place_N(self) -> NDArray[np.int64]:
        """Place of every row in the order of popularity, from 0."""
        place_N = np.empty(len(self.popular_N), np.int64)
        place_N[self.popular_N] = np.arange(len(self.popular_N))
        return place_N


class DecodeSession:
    """One search for the texts of a batch, and what its answers report.

    Args:
        generator: what searches.
        beams: and ``longest``, most tokens of a text: as they were asked for.
        on_step: called after each step with its number and the best text so far of every prompt, as tokens.
        turn: see `GenerativeModel.write`.
    """

    def __init__(
        self, generator: BeamSearch, beams: int, longest: int, on_step: OnStep | None = None, turn: Turn = nullcontext
    ) -> None:
        self.generator, self.beams, self.longest, self.turn = generator, beams, longest, turn
        self._on_step = on_step
        self._counts = Counts()
        self._prompts, self._started = 1, 0.0
        self._first: float | None = None

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        length_penalty: float = 1.0,
        paths: Paths | None = None,
        renormalize: bool = False,
    ) -> list[list[Text]]:
        """The best texts of every prompt; call it once."""
        self._prompts, self._started = len(prompts), time.perf_counter()
        return self.generator.search(
            prompts,
            BeamSettings(
                beams=self.beams, max_new_tokens=self.longest, length_penalty=length_penalty, renormalize=renormalize
            ),
            paths=paths,
            on_step=self._after,
            counts=self._counts,
            turn=self.turn,
            # bounded only where somebody may want the device between two passes
            pass_positions=None if self.turn is nullcontext else PASS_POSITIONS,
        )

    @property
    def new_tokens(self) -> int:
        """Tokens written for each prompt, all beams together."""
        return self._counts.new_tokens // self._prompts

    def seconds(self) -> dict[str, float]:
        """Until the first step, and since."""
        now = time.perf_counter()
        first = now if self._first is None else self._first
        return {"prefill": first - self._started, "decode": now - first}

    def _after(self, step: int, best: list[tuple[int, ...]]) -> None:
        self._first = self._first or time.perf_counter()
        if self._on_step is not None:
            self._on_step(step, best)


class NamedItems:
    """Common base of the models that ask a causal language model about items by their names.

    Attributes:
        model: a Hugging Face model with its head.
        names: of the catalog's items.
        tuned: the parts of ``model`` that an artifact stores (`modeling.methods.base_tuned.TunedWriter`), where it was
            trained through an adapter.
        reads: ``ids``, and ``text`` where names are titles.
    """

    model: nn.Module
    names: ItemIdentifiers
    tuned: Any
    reads: tuple[str, ...]

    @property
    def bodies(self) -> list[nn.Module]:
        """Bodies of language models that may share base weights with those of other artifacts; the method's own ones
        come first."""
        return [cast(Any, self.model).base_model]

    @property
    def title_tokens(self) -> TitleTokens:
        """Names of the catalog's items."""
        return self.names.tokens

    @title_tokens.setter
    def title_tokens(self, tokens: TitleTokens) -> None:
        self.names = replace(self.names, tokens=tokens)

    @property
    def token_file(self) -> str:
        """File of the artifact that holds the item tokens."""
        return ITEM_TOKENS

    def check_titles(self, titles: Sequence[str], name: str) -> None:
        """Read a few titles of the catalog again and compare with their stored tokens; raises `ArtifactError`."""
        if "text" in self.reads:
            rows = sample_rows(titles)
            check_title_tokens(self.read_titles([titles[row] for row in rows]), self.names.tokens, rows, name)

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free text as items of a history; raises `CannotReadText` where names are no text."""
        return self.names.spelling.read(titles)

    def name(self, item: int | FreeItem) -> NDArray[np.int32]:
        """Tokens of an item of a history."""
        found = item.tokens if isinstance(item, FreeItem) else self.names.tokens[item]
        assert found is not None, "a free title of another model"
        return found

    def _shown(self, tokens: Sequence[int]) -> str:
        """The text generated so far, as a person reads it."""
        return self.names.spelling.text(tokens)


class ItemGenerator(NamedItems, GenerativeModel):
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
        inputs: how tokens become inputs of the model; None: by its token embeddings.
    """

    def __init__(
        self,
        model: nn.Module,
        names: ItemIdentifiers,
        *,
        end: int | None,
        prefix: Sequence[int],
        history_limit: int,
        default: GenerationSettings,
        longest: int,
        inputs: TokenInputs | None = None,
    ) -> None:
        self.model, self.names, self.end = model, names, end
        self.history_limit, self.default = history_limit, default
        self.reads = names.spelling.reads
        self.limit = GenerationSettings(MOST_BEAMS, max(longest, default.max_new_tokens or 1))
        self.tuned: Any = None
        self._generator = beam_search_for(model, end_tokens=() if end is None else (end,), prefix=prefix, inputs=inputs)

    @property
    def networks(self) -> dict[Part, nn.Module]:
        """Networks with weights, by their purpose."""
        return {Part.WEIGHTS: self.model}

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """See `GenerativeModel.prepare`."""
        raise NotImplementedError

    def write(
        self,
        prompts: Sequence[GenerationPrompt],
        wanted: Sequence[ListQuery],
        settings: GenerationSettings = AS_EVALUATED,
        *,
        on_step: OnWriting | None = None,
        turn: Turn = nullcontext,
    ) -> list[GeneratedList]:
        """See `GenerativeModel.write`."""
        return self._write(prompts, wanted, self._search(settings, on_step, turn))

    def _write(
        self, prompts: Sequence[GenerationPrompt], wanted: Sequence[ListQuery], search: DecodeSession
    ) -> list[GeneratedList]:
        """The answers of the method, from the texts that ``search`` finds."""
        raise NotImplementedError

    def _search(
        self, settings: GenerationSettings = AS_EVALUATED, on_step: OnWriting | None = None, turn: Turn = nullcontext
    ) -> DecodeSession:
        """A search as it was asked for; raises `GenerationError`."""

        def checked(name: str) -> int:
            asked, most = getattr(settings, name) or getattr(self.default, name), getattr(self.limit, name)
            if not 1 <= asked <= most:
                raise GenerationError(f"{name} is {asked}; allowed is 1 to {most}")
            return int(asked)

        def show(step: int, best: list[tuple[int, ...]]) -> None:
            if on_step is not None:
                on_step(step, [self._shown(tokens) for tokens in best])

        return DecodeSession(self._generator, checked("beams"), checked("max_new_tokens"), show, turn)


class TopK:
    """Collects the rows of one answer: distinct eligible rows, at most k.

    Attributes:
        rows, scores: of the answer, in the order in which they were found.
        filled: number of rows at the end that `fill` added.
    """

    def __init__(self, wanted: ListQuery) -> None:
        self.wanted = wanted
        self.rows: list[int] = []
        self.scores: list[float] = []
        self.filled = 0
        self._taken = set(wanted.exclude.tolist())
        self._only = None if wanted.allowed is None else set(wanted.allowed.tolist())

    @property
    def left(self) -> int:
        """Number of missing rows."""
        return self.wanted.k - len(self.rows)

    def offer(self, row: int, score: float) -> None:
        """Add a row, unless it is not eligible, already there, or k rows are there."""
        if self.left > 0 and row not in self._taken and (self._only is None or row in self._only):
            self._taken.add(row)
            self.rows.append(row)
            self.scores.append(score)

    def fill(self, order: Iterable[int]) -> None:
        """Add the first eligible rows of ``order`` up to k rows, with scores below all others."""
        before, lowest = len(self.rows), min(self.scores, default=0.0)
        for row in self._until_full(order):
            self.offer(row, lowest - 1 - (len(self.rows) - before))
        self.filled = len(self.rows) - before

    def answer(
        self, generated: Sequence[Hypothesis], prompt_tokens: int, new_tokens: int, seconds: dict[str, float]
    ) -> GeneratedList:
        """The answer with these rows; see `GeneratedList` for the arguments."""
        return GeneratedList(
            np.array(self.rows, np.int64), np.array(self.scores, np.float32), self.filled, tuple(generated),
            prompt_tokens, new_tokens, seconds,
        )  # fmt: skip

    def _until_full(self, order: Iterable[int]) -> Iterator[int]:
        for row in order:
            if self.left <= 0:
                return
            yield row
