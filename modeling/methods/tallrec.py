"""TALLRec (Bao et al. 2023): a language model says whether a user will like an item, yes or no.

    <instruction>
    Liked: T1; T2; ...
    Disliked: T3; ...
    Target: T
    Answer: Yes

A user who liked nothing, or disliked nothing, has no such line.

The score is the difference of the two answers' logits behind ``Answer:``, which is the log of their odds. The published
code passes the two probabilities through a second softmax, which orders candidates by the difference of probabilities
instead: of two candidates whose odds are alike it prefers the one for which the model says either word more readily.

A candidate's score does not depend on other candidates. The service knows what a user has chosen, not how it was
rated: there a whole history counts as liked.

Shape legend: C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from modeling.backbone.loading import TextTokenizer
from modeling.generation.api import Turn
from modeling.generation.base import ItemIdentifiers
from modeling.methods.base import LoadContext
from modeling.methods.base_prompted import PromptedMethod, PromptedRecord, PromptRanker, label_tokens
from modeling.methods.base_ranking import Item, RankPrompt

LIKED, DISLIKED, BETWEEN = "\nLiked:", "\nDisliked:", ";"
TARGET, RESPOND = "\nTarget:", "\nAnswer:"

Names = Sequence[NDArray[np.int32]]


@dataclass(frozen=True)
class YesNoPrompt:
    """Token ids of the pieces that are the same for every user.

    Attributes:
        prefix: the instruction, the beginning-of-sequence token included where the tokenizer adds one.
        liked, disliked: before the titles of each kind; left out where there are none. A word for none would stand near
            the answer: "nothing" suggests no to those who like all that they chose.
        between: between two titles.
        target: before a candidate; ``respond`` after it.
        answers: tokens of yes and no, behind ``respond``.
        instruction, labels: what ``prefix`` and ``answers`` say.
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
        """The pieces as ``tokenizer`` has them.

        Raises:
            ValueError: the instruction is empty, or the answers are not two different single tokens.
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
        """What follows the prefix for all candidates of a user, oldest items first."""
        return [*self._list(self.liked, liked), *self._list(self.disliked, disliked), *self.target]

    def candidate(self, name: NDArray[np.int32]) -> list[int]:
        """What follows that for a candidate."""
        return [*name.tolist(), *self.respond]

    def most_positions(self, items: int, title_tokens: int) -> int:
        """Positions of the longest prompt and its answer."""
        pieces = (self.prefix, self.liked, self.disliked, self.target, self.respond)
        return sum(map(len, pieces)) + (items + 1) * (title_tokens + len(self.between)) + 1

    def _list(self, before: tuple[int, ...], names: Names) -> list[int]:
        if not len(names):
            return []
        first, *others = names
        return [*before, *first.tolist(), *(token for name in others for token in (*self.between, *name.tolist()))]


@dataclass(frozen=True)
class YesNoQuestions(RankPrompt):
    """Also the tokens that all candidates share."""

    shared: tuple[int, ...] = ()


class TallrecRanker(PromptRanker):
    """Scores each candidate by itself.

    Args:
        model, names, prompt, rest: see `PromptRanker`; ``prompt`` is how candidates are put to the model.
    """

    pointwise = True

    def __init__(self, model: nn.Module, names: ItemIdentifiers, *, prompt: YesNoPrompt, **rest: Any) -> None:
        super().__init__(model, names, prefix=prompt.prefix, labels=prompt.answers, **rest)
        self.prompt = prompt

    def shared(self, history: Sequence[Item], disliked: Sequence[bool] = ()) -> list[int]:
        """See `PromptRanker.shared`; ``disliked`` says it of every item, none is where it is empty."""
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
        """The same for a history of which it is known what was disliked, item by item; empty: nothing was."""
        newest = tuple(history[-self.titles :])
        shared = tuple(self.shared(newest, disliked[-self.titles :]))
        each = sum(len(self.name(item)) + len(self.prompt.respond) for item in candidates)
        return YesNoQuestions(newest, tuple(candidates), len(shared) + each, shared)

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """See `CandidateRanker.score`: logit of yes less logit of no."""
        found = []
        for prompt in prompts:
            assert isinstance(prompt, YesNoQuestions)
            texts = [self.prompt.candidate(self.name(item)) for item in prompt.candidates]
            logits_C2 = self.scorer.logits(prompt.shared, texts, turn=turn)
            found.append(logits_C2[:, 0] - logits_C2[:, 1])
        return found


class Tallrec(PromptedMethod[PromptedRecord]):
    """A language model and, where it has one, the dense artifact that finds candidates."""

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
