"""One sentence about a recommended item, by a causal language model whose decoding is constrained.

Everything that may be said is listed first: templates with the title of the item and with one or two titles of the
history in their slots. The model then decodes greedily along the trie of these sentences
(`SharedPrefixScorer.choose`): of the tokens that continue an allowed sentence it takes the most probable one. So the
model chooses the wording and the items of the history, and no title of another item can appear.

Such a sentence is a plausible text. It is not computed from the score of the item.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from torch import nn

from modeling.backbone.loading import TextTokenizer
from modeling.generation.api import Turn
from modeling.generation.base import NamedItems
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.shared_prefix import SharedPrefixScorer
from modeling.text import plain_text

NEWEST, LONGEST = 10, 80
"""Items of a history that a sentence may name, and characters of a title in it."""
WITH_ONE = (
    "You may like {item} because you chose {one}.",
    "You may like {item}, which is a good match for {one}.",
    "{item} is of the same kind as {one}, which you chose.",
    "{item} has a theme in common with {one}, which you chose.",
    "{item} goes well with {one}, which you chose.",
    "{item} is a change after {one}, which you chose.",
)
WITH_TWO = (
    "You may like {item} because you chose {one} and {two}.",
    "{item} is of the same kind as {one} and {two}, which you chose.",
    "{item} has a theme in common with {one} and {two}, which you chose.",
    "{item} goes well with {one} and {two}, which you chose.",
)
CHOSEN, RECOMMENDED, ASKED = "A user chose these items:", "\nRecommended item:", "\nThe reason in one sentence:"


@dataclass(frozen=True)
class Sentence:
    """A sentence, and the places of the items of the history that it names, in the order of the history."""

    text: str
    named: tuple[int, ...]


@dataclass(frozen=True)
class SentencePrompt:
    """Tokens of the prompt, and the allowed sentences as text and as tokens."""

    tokens: tuple[int, ...]
    sentences: tuple[Sentence, ...]
    texts: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Positions on the device: those of the prompt and of the longest sentence."""
        return len(self.tokens) + max(map(len, self.texts))


def allowed_sentences(item: str, history: Sequence[str]) -> list[Sentence]:
    """All sentences about an item that name no others than it and items of the history.

    Args:
        item: title of the recommended item.
        history: titles, oldest first; the newest `NEWEST` different ones are named, an equal title once.

    Returns:
        The sentences; none where the history has no title but that of the item.
    """
    newest = {shown_title(title): place for place, title in enumerate(history)}
    newest.pop(shown_title(item), None)
    places = sorted(newest.items(), key=lambda each: each[1])[-NEWEST:]
    found: list[tuple[tuple[str, ...], tuple[tuple[str, int], ...]]] = [(WITH_ONE, (one,)) for one in places]
    found += [(WITH_TWO, pair) for pair in itertools.combinations(places, 2)]
    return [
        Sentence(_filled(template, item, [title for title, _ in named]), tuple(place for _, place in named))
        for templates, named in found
        for template in templates
    ]


def shown_title(title: str) -> str:
    """A title as a sentence has it: plain text, in quotation marks, at most `LONGEST` characters."""
    plain = plain_text(title)
    return f"“{plain if len(plain) <= LONGEST else plain[: LONGEST - 1].rstrip() + '…'}”"


def _filled(template: str, item: str, named: Sequence[str]) -> str:
    slots = dict(zip(("one", "two"), named, strict=False))
    return template.format(item=shown_title(item), **slots)  # braces of a title are not read again


class SentenceWriter:
    """Writes sentences with a causal language model and its tokenizer.

    Args:
        model: a Hugging Face model with its head.
        tokenizer: of that model.
    """

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        self._model, self._pieces = model, TextTokenizer(tokenizer)

    @cached_property
    def _scorer(self) -> SharedPrefixScorer:
        """Made for the first sentence: on a GPU it may hold weights of its own."""
        return SharedPrefixScorer(self._model, asked=())

    def prepare(self, item: str, history: Sequence[str]) -> SentencePrompt | None:
        """The prompt for a recommended item and its `allowed_sentences`; None if there are no sentences."""
        sentences = allowed_sentences(item, history)
        if not sentences:
            return None
        chosen = "".join(f"\n- {shown_title(title)[1:-1]}" for title in history[-NEWEST:])
        text = f"{CHOSEN}{chosen}{RECOMMENDED} {shown_title(item)[1:-1]}{ASKED}"
        tokens, *texts = self._pieces.fixed([text, *(f" {sentence.text}" for sentence in sentences)])
        return SentencePrompt((*self._pieces.wrap[0], *tokens), tuple(sentences), tuple(map(tuple, texts)))

    def write(self, prompt: SentencePrompt, *, turn: Turn = nullcontext) -> Sentence:
        """The sentence that the model decodes.

        Args:
            prompt: of `prepare`.
            turn: held around every pass over the model.

        Raises:
            GenerationError: the prompt and a sentence take more positions than the model has.
        """
        return prompt.sentences[self._scorer.choose(prompt.tokens, prompt.texts, turn=turn)]


def sentence_writer(model: object) -> SentenceWriter | None:
    """A writer around the language model of a generative artifact or a ranker; None where that has no head over words,
    or is no decoder."""
    if not isinstance(model, NamedItems) or not isinstance(model.names.spelling, TitleTokenizer):
        return None
    network = cast(Any, model.model)
    if network.config.is_encoder_decoder or network.get_output_embeddings() is None:
        return None
    return SentenceWriter(network, model.names.spelling.tokenizer)
