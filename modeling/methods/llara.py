"""LLaRA (Liao et al. 2024): a language model generates the title of one of the given candidates.

    <instruction> T1 [slot], T2 [slot], ...
    Choose:
    C1 [slot]
    ...
    Cn [slot]
    Next:
    T<end>

Candidates and answer are lines of their own, so that the token before the answer is also before every candidate; small
models learn to copy a candidate sooner from such a prompt.

A slot is one input embedding that is not a word: the item's vector from a frozen id model, mapped by an MLP
(`ItemVectorProjector`), or a constant placeholder (``[PH]``), so that prompts with and without item vectors have the
same length. It is after the title, as published, or before it. If it is before the title, a model that has selected a
slot only copies the tokens after it, which a small model can learn; after the title, the slot itself has to encode how
the title begins.

When served, the candidates are the best eligible items of the id model, which is stored in the artifact. Only the first
line of the generated text counts. A text equal to a candidate's title selects that candidate; otherwise, as published,
a text that contains the title of exactly one candidate, ignoring case, selects that one; any other text is invalid.

The published method selects one item and orders no candidates. As a ranker (`CandidateRanker`), which is ours, the same
model scores given candidates: the score is the log of the probability that the model generates this title and its end,
given that it generates one of those in its prompt, plus the log of their number (0 is chance). Probabilities of a text
are products over its tokens, over the whole vocabulary, without a correction for length; nothing is generated. The
candidate with the best score may differ from the one that greedy decoding selects. Titles that are equal as they are
truncated have the same score. A free title has the placeholder's slot. More than ``candidates`` candidates are
distributed over several prompts, in the order of the id model (`modeling.methods.base_listing`).

Shape legend: C candidates, N items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.artifact.manifest import ArtifactError, one_line
from modeling.artifact.part_names import Part
from modeling.artifact.tensor_files import save_tensors
from modeling.encoder.prompt import FreeItem
from modeling.generation.api import GeneratedList, GenerationPrompt, GenerationSettings, Hypothesis, ListQuery, Turn
from modeling.generation.base import DecodeSession, ItemGenerator, ItemIdentifiers, TopK
from modeling.generation.beam_search import Text
from modeling.generation.shared_prefix import SharedPrefixScorer
from modeling.generation.token_inputs import SlotInputs
from modeling.methods.base import LoadContext
from modeling.methods.base_generative import GenerativeMethod, GeneratorRecord, title_end
from modeling.methods.base_listing import ListedCandidates, ListingRanker, window_scores
from modeling.methods.base_ranking import Item, RankPrompt
from modeling.methods.dense_scores import COLLABORATIVE, CollaborativeModel
from modeling.methods.llara_prompt import PLACEHOLDER, AssignedIdentifiers, ChoicePrompt, exact_title, held_titles
from modeling.spec import VectorPosition

SLOTS = "item_slots.safetensors"


class ItemVectorProjector(nn.Module):
    """Maps item vectors of an id model to input embeddings of a language model: Linear, GELU, Linear. Item vectors and
    placeholder are not trained.

    Args:
        vectors_ND: rows of the id model's item table.
        placeholder_H: constant input embedding of items whose vector is not shown.
    """

    vectors_ND: Tensor
    placeholder_H: Tensor

    def __init__(self, vectors_ND: Tensor, placeholder_H: Tensor) -> None:
        super().__init__()
        width = len(placeholder_H)
        self.map = nn.Sequential(nn.Linear(vectors_ND.shape[1], width), nn.GELU(), nn.Linear(width, width))
        self.register_buffer("vectors_ND", vectors_ND.detach().clone(), persistent=False)
        self.register_buffer("placeholder_H", placeholder_H.detach().clone())

    @classmethod
    def beside(cls, words: nn.Module, vectors_ND: Tensor) -> ItemVectorProjector:
        """An untrained projector; the placeholder is random, with the standard deviation of the word embeddings."""
        weight_VH = cast(Tensor, words.weight).detach()
        return cls(vectors_ND, torch.randn(weight_VH.shape[1]) * weight_VH.std().cpu())

    def forward(self) -> Tensor:
        """Input embeddings of the placeholder and all items, [1 + N, H]."""
        return torch.cat([self.placeholder_H[None].float(), self.map(self.vectors_ND).float()])


class LlaraGenerator(ListingRanker, ItemGenerator):
    """Generates the title of one of the candidates that an id model retrieves, and scores given candidates.

    Args:
        model: the tuned Hugging Face model for causal language modelling.
        names: titles of the catalog's items, as tokens.
        prompt: builds the prompt of a history and its candidates.
        slots: input embeddings of the items.
        retriever: the id model.
        candidates: number of candidates in a prompt.
        history_limit: maximum number of items read, counted from the newest.
        default: decoding settings of the evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        names: ItemIdentifiers,
        *,
        prompt: ChoicePrompt,
        slots: ItemVectorProjector,
        retriever: CollaborativeModel,
        candidates: int,
        history_limit: int,
        default: GenerationSettings,
    ) -> None:
        self._longest = int(np.diff(names.tokens.offsets).max(initial=1))
        self._inputs = nn.Module()
        with torch.no_grad():
            self._inputs.register_buffer("table_SH", slots())
        self._slot_inputs, self._place_N = SlotInputs(cast(Tensor, self._inputs.table_SH)), names.place_N
        super().__init__(
            model, names, end=prompt.end, prefix=prompt.prefix, history_limit=history_limit, default=default,
            longest=self._longest + 1, inputs=self._slot_inputs,
        )  # fmt: skip
        self.prompt, self.slots, self.retriever, self.candidates = prompt, slots, retriever, candidates

    @property
    def networks(self) -> dict[Part, nn.Module]:
        """The tuned model, the map of item vectors, the mapped vectors of all items, and the id model."""
        return {
            **super().networks,
            Part.ITEM_SLOTS: self.slots,
            Part.ITEM_INPUTS: self._inputs,
            Part.COLLABORATIVE: self.retriever,
        }

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """The history as a prompt; candidates are added when the requested list is known. Free titles have the
        placeholder's slot."""
        tokens = self.prompt.items(self._with_slots(history[-self.history_limit :]))
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        later = self.prompt.most_candidate_positions(self.candidates, self._longest)
        return GenerationPrompt(tuple(tokens), rows, later)

    def title(self, row: int) -> str:
        """The title of a row as the model generates it: truncated to the stored tokens."""
        return self._shown(self.names.tokens[row].tolist())

    def with_candidates(self, prompt: GenerationPrompt, rows: Sequence[int]) -> list[int]:
        """The prompt with candidates, without the prefix."""
        return [*prompt.tokens, *self.prompt.candidates(self._with_slots(rows))]

    @cached_property
    def scorer(self) -> SharedPrefixScorer:
        """Reads prompts and scores titles; made when candidates are first scored: on a GPU it may hold weights of its
        own."""
        return SharedPrefixScorer(self.model, (), self.prompt.prefix, self._slot_inputs)

    def prepare_candidates(
        self, history: Sequence[Item], candidates: Sequence[Item], user_id: str | None = None
    ) -> ListedCandidates:
        """See `CandidateRanker.prepare_candidates`. A title is read twice: in the list of candidates and as answer."""
        newest = tuple(history[-self.history_limit :])
        listed = self.listed_positions(candidates, -(-len(candidates) // self.candidates))
        length = len(self.prompt.items(self._with_slots(newest))) + listed
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        return ListedCandidates(newest, tuple(candidates), length, rows)

    @property
    def most_listed(self) -> int:
        """See `ListingRanker.most_listed`."""
        return self.candidates

    def listed_positions(self, candidates: Sequence[Item], windows: int) -> int:
        """See `ListingRanker.listed_positions`."""
        line = len(self.prompt.line)
        each = sum(2 * len(self.name(item)) + 1 + line for item in candidates)
        return windows * (self.prompt.most_candidate_positions(0, 0) - line) + each

    def order(self, prompt: RankPrompt) -> NDArray[np.int64]:
        """See `ListingRanker.order`: by the id model's score, by popularity for a history without catalog items; free
        titles last, by title."""
        assert isinstance(prompt, ListedCandidates)
        return prompt.order(self.retriever(prompt.rows) if prompt.rows else -self._place_N)

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """See `CandidateRanker.score`; the history is read once, and each list of at most ``candidates`` once."""
        found = []
        for prompt in prompts:
            assert isinstance(prompt, ListedCandidates)
            windows = self.windows(prompt, turn)
            lists = [self._with_slots([prompt.candidates[place] for place in places_C]) for places_C in windows]
            branches = [
                (self.prompt.candidates(items), [self.prompt.answer(name) for name, _ in items]) for items in lists
            ]
            history = self.prompt.items(self._with_slots(prompt.history))
            logs = self.scorer.likelihoods(history, branches, turn=turn, kept=prompt.kept)
            found.append(window_scores(windows, logs))
        return found

    def _with_slots(self, items: Sequence[Item]) -> list[AssignedIdentifiers]:
        return [(self.name(item), PLACEHOLDER if isinstance(item, FreeItem) else item + 1) for item in items]

    def _write(
        self, prompts: Sequence[GenerationPrompt], wanted: Sequence[ListQuery], search: DecodeSession
    ) -> list[GeneratedList]:
        """Lists that begin with the chosen candidate; the other candidates and the rest of the catalog follow in the
        id model's order and count as filled in."""
        started = time.perf_counter()
        with search.turn():
            orders = [self._order(*pair) for pair in zip(prompts, wanted, strict=True)]
        ordering = time.perf_counter() - started
        answers = self.choose(prompts, [order[: self.candidates] for order in orders], search)
        return [
            self._answer(texts, order, want, length, new, seconds | {"search": ordering})
            for (texts, length, new, seconds), order, want in zip(answers, orders, wanted, strict=True)
        ]

    def choose(
        self,
        prompts: Sequence[GenerationPrompt],
        candidates: Sequence[Sequence[int]],
        search: DecodeSession | None = None,
    ) -> list[tuple[list[Hypothesis], int, int, dict[str, float]]]:
        """Generate an answer for given candidates. With one beam decoding is greedy, up to the first end token.

        Args:
            prompts: of `prepare`.
            candidates: catalog rows for each prompt.
            search: decoding session; None: a new one with the default settings.

        Returns:
            For each prompt: texts, best first; positions of the prompt; tokens generated; seconds by stage.
        """
        search = search or self._search()
        read = [self.with_candidates(prompt, rows) for prompt, rows in zip(prompts, candidates, strict=True)]
        found = search.run(read)
        seconds, started = search.seconds(), time.perf_counter()
        titles = [[self.title(row) for row in rows] for rows in candidates]
        generated = [
            [self._generated(text, rows, known) for text in texts]
            for texts, rows, known in zip(found, candidates, titles, strict=True)
        ]
        seconds["ground"] = time.perf_counter() - started
        return [(texts, len(tokens), search.new_tokens, seconds) for texts, tokens in zip(generated, read, strict=True)]

    def _generated(self, text: Text, rows: Sequence[int], titles: Sequence[str]) -> Hypothesis:
        shown = self._shown(text.tokens)
        place, held = exact_title(shown, titles), held_titles(shown, titles)
        if place is not None:
            return Hypothesis(shown, text.score, True, rows[place], 0.0)
        return Hypothesis(shown, text.score, False, rows[held[0]] if len(held) == 1 else None)

    def _order(self, prompt: GenerationPrompt, wanted: ListQuery) -> list[int]:
        """Eligible rows, best first, enough for the candidates and the list; by popularity for an empty history."""
        order_N = self.names.popular_N
        if prompt.rows:
            order_N = np.argsort(-self.retriever(prompt.rows), kind="stable")
        may_N = np.ones(len(order_N), bool) if wanted.allowed is None else np.isin(order_N, wanted.allowed)
        may_N &= ~np.isin(order_N, wanted.exclude)
        found: list[int] = order_N[may_N][: max(self.candidates, wanted.k)].tolist()
        return found

    def _answer(
        self,
        texts: list[Hypothesis],
        order: list[int],
        wanted: ListQuery,
        length: int,
        new: int,
        seconds: dict[str, float],
    ) -> GeneratedList:
        places = TopK(wanted)
        for text in texts:
            if text.row is not None:
                places.offer(text.row, text.score)
        places.fill(order)
        return places.answer(texts, length, new, seconds)


def item_vectors(model: CollaborativeModel) -> Tensor:
    """Item vectors of an id model's table, as trained, [N, D]."""
    items = model.encoder.items
    return items.table()[: items.size].detach().float()


class LlaraRecord(GeneratorRecord):
    """Manifest record of a `LlaraGenerator`.

    Attributes:
        instruction: first text of the prompt.
        candidates: number of candidates in a prompt.
        slots: whether an item's slot is after or before its title.
    """

    instruction: str
    candidates: int
    slots: VectorPosition = "after"


class Llara(GenerativeMethod[LlaraRecord]):
    """Stores, besides the language model, the map from item vectors to input embeddings, and the id model."""

    kind, Record = "llara", LlaraRecord

    def save_parts(self, folder: Path, model: LlaraGenerator) -> dict[str, Any]:
        """See `GenerativeMethod.save_parts`."""
        save_tensors(model.slots.state_dict(), folder / SLOTS)
        model.retriever.copy_to(folder)
        return {
            "instruction": model.prompt.instruction, "candidates": model.candidates, "slots": model.prompt.slots,
        }  # fmt: skip

    def generator(
        self,
        record: LlaraRecord,
        context: LoadContext,
        network: nn.Module,
        names: ItemIdentifiers,
        base: nn.Module | None,
    ) -> LlaraGenerator:
        """See `GenerativeMethod.generator`; item vectors are those of the id model."""
        files, words = context.files, cast(Any, network).get_input_embeddings()
        end = title_end(record, context, "a choice")
        retriever = CollaborativeModel(files.below(COLLABORATIVE), context.manifest.catalog_size)
        slots = ItemVectorProjector(item_vectors(retriever), torch.zeros(words.weight.shape[1]))
        try:
            slots.load_state_dict(files.tensors(SLOTS))
        except RuntimeError as error:
            raise ArtifactError(f"{SLOTS} of {files.name} cannot be loaded: {one_line(error)}") from error
        tokenizer = cast(Any, names.spelling).tokenizer
        return LlaraGenerator(
            network,
            names,
            prompt=ChoicePrompt.of(tokenizer, record.instruction, end, words.weight.shape[0], record.slots),
            slots=slots.to(words.weight.device).requires_grad_(False),
            retriever=retriever,
            candidates=record.candidates,
            history_limit=record.history_limit,
            default=record.default,
        )


METHOD = Llara()
