"""LlamaRec (Yue et al. 2023): a language model reads history and lettered candidates; the scores are its next-token
logits of the letters. No text is generated.

    <instruction>
    1: T1
    2: T2
    ...
    Candidates:
    A: C1
    B: C2
    ...
    Answer:
    B

A letter follows a line break both before its candidate and as the answer, so it is the same token in both places.

Candidates are in the order of the dense artifact that retrieves them, as published, or in order of popularity without
one; their order in a request does not matter. More than ``window`` candidates are distributed over several prompts,
which share the history: every window gets each n-th candidate, so that windows are about equally good. A score is the
log probability of a letter among those of its window plus the log of the window's size (0 is chance), which makes
windows comparable; candidates of one prompt are in the order of their logits.

Shape legend: C candidates, W windows, A labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from modeling.backbone.loading import TextTokenizer
from modeling.encoder.prompt import FreeItem
from modeling.generation.api import Turn
from modeling.generation.base import ItemIdentifiers
from modeling.methods.base import LoadContext
from modeling.methods.base_listing import ListedCandidates, ListingRanker, window_scores, windows_of
from modeling.methods.base_prompted import PromptedMethod, PromptedRecord, PromptRanker, label_tokens
from modeling.methods.base_ranking import Item, RankPrompt

CHOOSE, RESPOND = "\nCandidates:", "\nAnswer:\n"

Names = Sequence[NDArray[np.int32]]


@dataclass(frozen=True)
class LetterPrompt:
    """Token ids of the constant parts of the prompt.

    Attributes:
        prefix: the instruction, with the beginning-of-sequence token if the tokenizer adds one.
        choose: before the candidates.
        lines: before each candidate, by label.
        respond: after the last candidate.
        answers: tokens of the labels after ``respond``.
        tokenizer: for the item numbers of a history.
        instruction, labels: texts of ``prefix`` and ``answers``.
    """

    prefix: tuple[int, ...]
    choose: tuple[int, ...]
    lines: tuple[tuple[int, ...], ...]
    respond: tuple[int, ...]
    answers: tuple[int, ...]
    tokenizer: TextTokenizer
    instruction: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, instruction: str, labels: Sequence[str]) -> LetterPrompt:
        """The prompt for a tokenizer.

        Raises:
            ValueError: the instruction is empty, or the labels are not distinct single tokens.
        """
        if not instruction.strip():
            raise ValueError("history.instruction is empty: an instruction prompt begins with one")
        pieces = TextTokenizer(tokenizer)
        first, choose, respond = (tuple(each) for each in pieces.fixed([instruction, CHOOSE, RESPOND]))
        lines = tuple(tuple(each) for each in pieces.fixed([f"\n{label}:" for label in labels]))
        answers = label_tokens(tokenizer, RESPOND, labels)
        begin = (*pieces.wrap[0], *first)
        return cls(begin, choose, lines, respond, answers, pieces, instruction, tuple(labels))

    def shared(self, names: Names) -> list[int]:
        """Tokens after the prefix: the numbered history, oldest item first."""
        numbers = self.tokenizer.fixed([f"\n{place}:" for place in range(1, len(names) + 1)])
        return [token for number, name in zip(numbers, names, strict=True) for token in (*number, *name.tolist())]

    def candidates(self, names: Names) -> list[int]:
        """Tokens after the history: labelled candidates, at most as many as labels, and the request for an answer."""
        lines = zip(self.lines[: len(names)], names, strict=True)
        listed = [token for line, name in lines for token in (*line, *name.tolist())]
        return [*self.choose, *listed, *self.respond]

    def most_candidate_positions(self, candidates: int, title_tokens: int) -> int:
        """Positions of ``candidates`` candidates in one prompt, and of the request."""
        line = max(map(len, self.lines))
        return len(self.choose) + candidates * (title_tokens + line) + len(self.respond)

    def most_positions(self, items: int, candidates: int, title_tokens: int) -> int:
        """Upper bound on the positions of a prompt and its answer."""
        numbers = sum(map(len, self.tokenizer.fixed([f"\n{place}:" for place in range(1, items + 1)])))
        history = len(self.prefix) + numbers + items * title_tokens
        return history + self.most_candidate_positions(candidates, title_tokens) + 1


class LlamarecRanker(ListingRanker, PromptRanker):  # type: ignore[misc]  # as in `PromptRanker`
    """Scores candidates against each other.

    Args:
        model, names, rest: see `PromptRanker`.
        prompt: builds the prompt of a history and its candidates.
        window: maximum number of candidates in one prompt; at most the number of labels.
    """

    def __init__(
        self, model: nn.Module, names: ItemIdentifiers, *, prompt: LetterPrompt, window: int, **rest: Any
    ) -> None:
        super().__init__(model, names, prefix=prompt.prefix, labels=prompt.answers[:window], **rest)
        self.prompt, self.window = prompt, window

    def shared(self, history: Sequence[Item]) -> list[int]:
        """See `PromptRanker.shared`."""
        return self.prompt.shared([self.name(item) for item in history])

    @property
    def most_listed(self) -> int:
        """See `ListingRanker.most_listed`."""
        return self.window

    def listed_positions(self, candidates: Sequence[Item], windows: int) -> int:
        """See `ListingRanker.listed_positions`."""
        line = max(map(len, self.prompt.lines))
        each = sum(len(self.name(item)) + line for item in candidates)
        return windows * self.prompt.most_candidate_positions(0, 0) + each

    def most_positions(self, title_tokens: int) -> int:
        """See `PromptRanker.most_positions`."""
        windows = -(-self.candidates // self.window)
        return windows * self.prompt.most_candidate_positions(-(-self.candidates // windows), title_tokens)

    def prepare_candidates(
        self, history: Sequence[Item], candidates: Sequence[Item], user_id: str | None = None
    ) -> ListedCandidates:
        """See `CandidateRanker.prepare_candidates`."""
        newest = tuple(history[-self.titles :])
        windows = -(-len(candidates) // self.window)
        length = len(self.shared(newest)) + self.listed_positions(candidates, windows)
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        return ListedCandidates(newest, tuple(candidates), length, rows)

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """See `CandidateRanker.score`; one forward pass for each prompt of at most ``window`` candidates."""
        return [self._score_windows(prompt, self.windows(prompt, turn), turn) for prompt in prompts]

    def order(self, prompt: RankPrompt) -> NDArray[np.int64]:
        """Indices [C] of the candidates in prompt order: by the dense artifact's score if there is one and the history
        has catalog items, else by popularity; free titles last, by title."""
        assert isinstance(prompt, ListedCandidates)
        known_N = self.retriever(prompt.rows) if self.retriever is not None and prompt.rows else -self._place_N
        return prompt.order(known_N)

    def score_in_order(
        self, prompt: RankPrompt, order_C: NDArray[np.int64], *, turn: Turn = nullcontext
    ) -> NDArray[np.float32]:
        """Scores [C] of the candidates in a given prompt order; used to measure the model's bias towards letters."""
        return self._score_windows(prompt, windows_of(order_C, self.window), turn)

    def _score_windows(
        self, prompt: RankPrompt, windows: Sequence[NDArray[np.int64]], turn: Turn
    ) -> NDArray[np.float32]:
        assert isinstance(prompt, ListedCandidates)
        texts = [self.prompt.candidates([self.name(prompt.candidates[place]) for place in each]) for each in windows]
        logits_WA = self.scorer.logits(self.shared(prompt.history), texts, turn=turn, kept=prompt.kept)
        shown = [logits_A[: len(places)] for places, logits_A in zip(windows, logits_WA, strict=True)]
        return window_scores(windows, shown)


class LlamarecRecord(PromptedRecord):
    """Manifest record of a `LlamarecRanker`; ``window``: maximum number of candidates in one prompt."""

    window: int


class Llamarec(PromptedMethod[LlamarecRecord]):
    """Stores and loads a `LlamarecRanker`."""

    kind, Record = "llamarec", LlamarecRecord

    def save_parts(self, folder: Path, model: Any) -> dict[str, Any]:
        """See `PromptedMethod.save_parts`."""
        return {**super().save_parts(folder, model), "window": model.window}

    def generator(
        self,
        record: LlamarecRecord,
        context: LoadContext,
        network: nn.Module,
        names: ItemIdentifiers,
        base: nn.Module | None,
    ) -> LlamarecRanker:
        """See `GenerativeMethod.generator`."""
        return LlamarecRanker(network, names, window=record.window, **self.parts(record, context, names, LetterPrompt))


METHOD = Llamarec()
