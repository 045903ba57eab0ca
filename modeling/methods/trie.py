"""A language model that generates the items of a catalog as token sequences, constrained to their trie.

An item has the same tokens in histories and in answers, followed by an end token: its title (GENRE, De Cao et al. 2021;
here for a user's history), or its semantic ID (TIGER, Rajput et al. 2023). A prompt is the concatenation of the items
of a history, so that one pass over a user's sequence trains the loss at every item, and the answer is the next item.

The score of a sequence is the sum of its log probabilities, not divided by its length: the log probability of the item
under the model, whatever its number of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from index.trie import TokenTrie
from modeling.encoder.prompt import FreeItem, TitleTokens
from modeling.generation.api import GeneratedList, GenerationPrompt, GenerationSettings, Hypothesis, ListQuery
from modeling.generation.base import DecodeSession, ItemGenerator, ItemIdentifiers, TopK
from modeling.generation.beam_search import Paths, Text
from modeling.generation.item_tokenizer import CodeTokenizer, ItemTokenizer, TitleTokenizer
from modeling.generation.token_inputs import TokenInputs
from modeling.methods.base import LoadContext
from modeling.methods.base_generative import GenerativeMethod, GeneratorRecord, trie_of


class TrieGenerator(ItemGenerator):
    """Generates token sequences along a trie, so that every complete text is an item.

    Args:
        model: a Hugging Face model for causal language modelling.
        names: token sequences of the catalog's items.
        paths: the trie of the names as arrays (`index.trie.TokenTrie.arrays`).
        items: returns the rows whose sequence ends in a given state, best first; several if names are equal.
        end: token that ends an item and begins every prompt. None: all names have the same length.
        history_limit: maximum number of items read, counted from the newest.
        default: decoding settings of the evaluation.
        inputs: see `ItemGenerator`.
        renormalize: renormalise probabilities over the tokens allowed by the trie, for a model trained that way.
        trie: of the names; None: it is rebuilt when items change.
    """

    def __init__(
        self,
        model: nn.Module,
        names: ItemIdentifiers,
        *,
        paths: Paths,
        items: Callable[[int], list[int]],
        end: int | None,
        history_limit: int,
        default: GenerationSettings,
        inputs: TokenInputs | None = None,
        renormalize: bool = False,
        trie: TokenTrie | None = None,
    ) -> None:
        self._closing = () if end is None else (end,)
        longest = int(np.diff(names.tokens.offsets).max(initial=1)) + len(self._closing)
        super().__init__(
            model, names, end=end, prefix=self._closing, history_limit=history_limit, default=default, longest=longest,
            inputs=inputs,
        )  # fmt: skip
        self._tree, self.renormalize = (paths, items), renormalize
        self._trie = trie
        self._closed: Set[int] = frozenset()
        self.names_are_assigned = not isinstance(names.spelling, TitleTokenizer)
        self._added: dict[int, list[int]] = {}

    @property
    def paths(self) -> Paths:
        """The trie of the names as arrays."""
        return self._tree[0]

    @property
    def adds_items(self) -> bool:
        """Whether items can be added: their tokens are those of their titles, so that no code has to be assigned."""
        return not self.names_are_assigned

    def item_refusal(self, title: str) -> str | None:
        """See `GenerativeModel.item_refusal`: a title must fit into the default number of generated tokens."""
        most = cast(int, self.default.max_new_tokens)
        if self.names_are_assigned:
            return "this method writes items as identifiers that are assigned in training; items cannot be added to it"
        tokens = self._spelt(title)
        if not tokens or self.end in tokens:
            return f"the tokenizer of this method has no tokens for the title {title[:80]!r}"
        if len(tokens) + len(self._closing) > most:
            return f"the title has {len(tokens)} tokens, and this artifact writes at most {most - len(self._closing)}"
        return None

    def change_items(self, closed: Set[int], added: Mapping[int, str]) -> None:
        """See `GenerativeModel.change_items`; the trie is replaced by a changed copy."""
        trie = trie_of(self.names.tokens, self.end) if self._trie is None else self._trie.copy()
        for row in self._closed - closed:
            trie.add(row, self.names.tokens[row].tolist())
        for row in closed - self._closed:
            trie.remove(row, self.names.tokens[row].tolist())
        for row in self._added.keys() - added.keys():
            trie.remove(row, self._added.pop(row))
        for row in added.keys() - self._added.keys() if self.adds_items else ():
            self._added[row] = self._spelt(added[row])
            trie.add(row, self._added[row])
        self._trie, self._closed = trie, frozenset(closed)
        found = trie_paths(self.names, trie)
        self._tree = found["paths"], found["items"]  # one assignment: whoever writes has taken the old ones

    def _spelt(self, title: str) -> list[int]:
        (read,) = self.names.spelling.read([title])
        return [] if read.tokens is None else [int(token) for token in read.tokens]

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """Items oldest to newest, each followed by the end token; an empty history is the end token alone."""
        return GenerationPrompt(tuple(self._read(history)) or self._closing)

    def _read(self, history: Sequence[int | FreeItem]) -> list[int]:
        return [
            token for item in history[-self.history_limit :] for token in (*self.name(item).tolist(), *self._closing)
        ]

    def _write(
        self, prompts: Sequence[GenerationPrompt], wanted: Sequence[ListQuery], search: DecodeSession
    ) -> list[GeneratedList]:
        """Lists of the items found by constrained beam search.

        Excluded and ineligible items may occupy beams. Missing entries of a list are filled with popular items, with
        scores below those of the generated items.
        """
        paths, items = self._tree
        found = search.run(
            [prompt.tokens for prompt in prompts], length_penalty=0.0, paths=paths, renormalize=self.renormalize
        )
        seconds, started = search.seconds(), time.perf_counter()
        written = [
            self._answer(texts, items, prompt, want, search.new_tokens, seconds)
            for texts, prompt, want in zip(found, prompts, wanted, strict=True)
        ]
        seconds |= {"ground": time.perf_counter() - started, "search": 0.0}
        return written

    def _answer(
        self,
        texts: Sequence[Text],
        items: Callable[[int], list[int]],
        prompt: GenerationPrompt,
        wanted: ListQuery,
        new: int,
        seconds: dict[str, float],
    ) -> GeneratedList:
        generated: list[Hypothesis] = []
        places = TopK(wanted)
        for text in texts:
            named = items(text.state)  # none where a text was cut
            generated.append(
                Hypothesis(
                    self.names.spelling.text(text.tokens),
                    text.score,
                    bool(named),
                    named[0] if named else None,
                    0.0 if named else None,
                    self.names.spelling.code(text.tokens),
                )
            )
            for row in named:
                places.offer(row, text.score)
        if places.left:
            places.fill(self.names.popular_N.tolist())
        return places.answer(generated, prompt.length, new, seconds)


class EncoderDecoderGenerator(TrieGenerator):
    """Semantic IDs, with an encoder that reads the history: the user's token, then the codes of the items.

    There is no end token, since all IDs have the same length. Args: see `TrieGenerator`; ``names`` are encoded by a
    `CodeTokenizer`.
    """

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """The user's token, or the unknown-user token, and the items' codes, oldest to newest."""
        spelling = self.names.spelling
        assert isinstance(spelling, CodeTokenizer), "titles are of different lengths"
        return GenerationPrompt((spelling.user(user_id), *self._read(history)))


class TrieRecord(GeneratorRecord):
    """Manifest record of a `TrieGenerator`; ``renormalize``: see there."""

    renormalize: bool = False


def trie_paths(names: ItemIdentifiers, trie: TokenTrie) -> dict[str, Any]:
    """Arguments of a `TrieGenerator` that follow from a trie; items with equal names are in order of popularity."""
    place_N = names.place_N

    def place(row: int) -> int:
        return int(place_N[row]) if row < len(place_N) else row  # items that were added come last

    def items(state: int) -> list[int]:
        return sorted(trie.items(state), key=place)

    return {"paths": trie.arrays(), "items": items, "trie": trie}


def trie_generator(
    model: nn.Module,
    spelling: ItemTokenizer,
    tokens: TitleTokens,
    trie: TokenTrie,
    popular_N: NDArray[Any],
    *,
    end: int | None,
    history_limit: int,
    default: GenerationSettings,
    renormalize: bool = False,
) -> TrieGenerator:
    """A generator along the trie of a catalog's names, over a decoder or an encoder-decoder."""
    names = ItemIdentifiers(tokens, popular_N, spelling)
    kind = EncoderDecoderGenerator if cast(Any, model).config.is_encoder_decoder else TrieGenerator
    return kind(
        model, names, end=end, history_limit=history_limit, default=default, renormalize=renormalize,
        **trie_paths(names, trie),
    )  # fmt: skip


class Trie(GenerativeMethod[TrieRecord]):
    """Stores and loads a `TrieGenerator`."""

    kind, Record = "trie", TrieRecord

    def save_parts(self, folder: Path, model: TrieGenerator) -> dict[str, Any]:
        """See `GenerativeMethod.save_parts`; there are no further files."""
        return {"renormalize": model.renormalize}

    def generator(
        self,
        record: TrieRecord,
        context: LoadContext,
        network: nn.Module,
        names: ItemIdentifiers,
        base: nn.Module | None,
    ) -> TrieGenerator:
        """See `GenerativeMethod.generator`; the trie is built from the item tokens."""
        return trie_generator(
            network, names.spelling, names.tokens, trie_of(names.tokens, record.end), names.popular_N, end=record.end,
            history_limit=record.history_limit, default=record.default, renormalize=record.renormalize,
        )  # fmt: skip


METHOD = Trie()
