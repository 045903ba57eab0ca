"""TALLRec (Bao et al. 2023): a language model predicts whether a user will like an item, yes or no.

    <instruction>
    Liked: T1; T2; ...
    Disliked: T3; ...
    Target: T
    Answer: Yes

A user who liked nothing, or disliked nothing, has no such line.

The score is the difference of the two answers' logits after ``Answer:``, which is their log odds. The published code
passes the two probabilities through a second softmax and so ranks by the difference of probabilities: of two candidates
with equal odds it prefers the one for which both answers together are more probable.

A candidate's score does not depend on other candidates. The service stores which items a user has chosen, but no
ratings, so a whole history counts as liked there.

Shape legend: C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from modeling.backbone.loading import TextTokenizer
from modeling.generation.api import Turn
from modeling.generation.base import ItemIdentifiers
from modeling.generation.consecutive import consecutive
from modeling.generation.shared_prefix import KeptPrompt
from modeling.methods.base import LoadContext
from modeling.methods.base_prompted import PromptedMethod, PromptedRecord, PromptRanker, label_tokens
from modeling.methods.base_ranking import Item, RankPart, RankPrompt

LIKED, DISLIKED, BETWEEN = "\nLiked:", "\nDisliked:", ";"
TARGET, RESPOND = "\nTarget:", "\nAnswer:"

Names = Sequence[NDArray[np.int32]]


@dataclass(frozen=True)
class YesNoPrompt:
    """Token ids of the constant parts of the prompt.

    Attributes:
        prefix: the instruction, with the beginning-of-sequence token if the tokenizer adds one.
        liked, disliked: before the titles of liked and of disliked items; left out if there are none. A word for none
            would stand near the answer: "nothing" suggests no for users who like all that they chose.
        between: between two titles.
        target: before a candidate.
        respond: after a candidate.
        answers: tokens of yes and no after ``respond``.
        instruction, labels: texts of ``prefix`` and ``answers``.
    """

    prefix: tuple[int, ...]
    liked: tuple[int, ...]
    disliked: tuple[int, ...]
    between: tuple[int, ...]
    target: tuple[int, ...]
    respond: tuple[int, ...]
    answers: tuple[int, ...]
    instruction: str
    labels: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Any, instruction: str, labels: Sequence[str]) -> YesNoPrompt:
        """The prompt for a tokenizer.

        Raises:
            ValueError: the instruction is empty, or the answers are not two distinct single tokens.
        """
        if not instruction.strip():
            raise ValueError("history.instruction is empty: an instruction prompt begins with one")
        if len(labels) != 2:
            raise ValueError(f"{len(labels)} labels are given: yes and no are two")
        pieces = TextTokenizer(tokenizer)
        texts = [instruction, LIKED, DISLIKED, BETWEEN, TARGET, RESPOND]
        first, *others = pieces.fixed(texts)
        liked, disliked, between, target, respond = (tuple(each) for each in others)
        answers = label_tokens(tokenizer, RESPOND, [f" {label}" for label in labels])
        begin, said = (*pieces.wrap[0], *first), tuple(labels)
        return cls(begin, liked, disliked, between, target, respond, answers, instruction, said)

    def shared(self, liked: Names, disliked: Names) -> list[int]:
        """Tokens after the prefix that all candidates of a user share; titles are oldest first."""
        return [*self._list(self.liked, liked), *self._list(self.disliked, disliked), *self.target]

    def candidate(self, name: NDArray[np.int32]) -> list[int]:
        """Tokens of one candidate, after those of `shared`."""
        return [*name.tolist(), *self.respond]

    def most_positions(self, items: int, title_tokens: int) -> int:
        """Upper bound on the positions of a prompt and its answer."""
        pieces = (self.prefix, self.liked, self.disliked, self.target, self.respond)
        return sum(map(len, pieces)) + (items + 1) * (title_tokens + len(self.between)) + 1

    def _list(self, before: tuple[int, ...], names: Names) -> list[int]:
        if not len(names):
            return []
        first, *others = names
        return [*before, *first.tolist(), *(token for name in others for token in (*self.between, *name.tolist()))]


@dataclass(frozen=True)
class YesNoQuestions(RankPrompt):
    """Adds the tokens that all candidates share, and, of a part, the same as they were read for another part."""

    shared: tuple[int, ...] = ()
    kept: KeptPrompt | None = None


class TallrecRanker(PromptRanker):
    """Scores each candidate in a prompt of its own.

    Args:
        model, names, rest: see `PromptRanker`.
        prompt: builds the prompt of a history and a candidate.
    """

    def __init__(self, model: nn.Module, names: ItemIdentifiers, *, prompt: YesNoPrompt, **rest: Any) -> None:
        super().__init__(model, names, prefix=prompt.prefix, labels=prompt.answers, **rest)
        self.prompt = prompt

    def shared(self, history: Sequence[Item], disliked: Sequence[bool] = ()) -> list[int]:
        """See `PromptRanker.shared`; ``disliked``: one flag per item, or empty if all items are liked."""
        flags = list(disliked) or [False] * len(history)
        names = [(self.name(item), flag) for item, flag in zip(history, flags, strict=True)]
        return self.prompt.shared([name for name, no in names if not no], [name for name, no in names if no])

    def most_positions(self, title_tokens: int) -> int:
        """See `PromptRanker.most_positions`."""
        return self.candidates * (title_tokens + len(self.prompt.respond))

    def prepare_candidates(
        self, history: Sequence[Item], candidates: Sequence[Item], user_id: str | None = None
    ) -> YesNoQuestions:
        """See `CandidateRanker.prepare_candidates`; all of the history counts as liked."""
        return self.prepare_rated(history, (), candidates)

    def prepare_rated(
        self, history: Sequence[Item], disliked: Sequence[bool], candidates: Sequence[Item]
    ) -> YesNoQuestions:
        """As `prepare_candidates`, with a flag ``disliked`` for each item of the history; empty: all are liked."""
        newest = tuple(history[-self.titles :])
        shared = tuple(self.shared(newest, disliked[-self.titles :]))
        each = sum(self._positions(item) for item in candidates)
        return YesNoQuestions(newest, tuple(candidates), len(shared) + each, shared)

    def divide(self, prompt: RankPrompt, most: int, *, turn: Turn = nullcontext) -> list[RankPart]:
        """See `CandidateRanker.divide`."""
        assert isinstance(prompt, YesNoQuestions)
        lengths = [self._positions(item) for item in prompt.candidates]
        shared, kept = len(prompt.shared), KeptPrompt()
        parts: list[RankPart] = []
        for places in consecutive(lengths, most - shared):
            length = sum(lengths[places.start : places.stop]) + (0 if parts else shared)
            candidates = prompt.candidates[places.start : places.stop]
            part = replace(prompt, candidates=candidates, length=length, kept=kept)
            parts.append(RankPart(tuple(places), part))
        return parts

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """See `CandidateRanker.score`: the logit of yes minus the logit of no."""
        found = []
        for prompt in prompts:
            assert isinstance(prompt, YesNoQuestions)
            texts = [self.prompt.candidate(self.name(item)) for item in prompt.candidates]
            logits_C2 = self.scorer.logits(prompt.shared, texts, turn=turn, kept=prompt.kept)
            found.append(logits_C2[:, 0] - logits_C2[:, 1])
        return found

    def _positions(self, item: Item) -> int:
        return len(self.name(item)) + len(self.prompt.respond)


class Tallrec(PromptedMethod[PromptedRecord]):
    """Stores and loads a `TallrecRanker`."""

    kind, Record = "tallrec", PromptedRecord

    def generator(
        self,
        record: PromptedRecord,
        context: LoadContext,
        network: nn.Module,
        names: ItemIdentifiers,
        base: nn.Module | None,
    ) -> TallrecRanker:
        """See `GenerativeMethod.generator`."""
        return TallrecRanker(network, names, **self.parts(record, context, names, YesNoPrompt))


METHOD = Tallrec()
