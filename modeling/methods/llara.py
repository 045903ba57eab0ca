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
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.artifact.manifest import ArtifactError, one_line
from modeling.artifact.part_names import Part
from modeling.artifact.tensor_files import save_tensors
from modeling.backbone.loading import TextTokenizer
from modeling.encoder.prompt import FreeItem
from modeling.generation.api import GeneratedList, GenerationPrompt, GenerationSettings, Hypothesis, ListQuery
from modeling.generation.base import DecodeSession, ItemGenerator, ItemIdentifiers, TopK
from modeling.generation.beam_search import Text
from modeling.generation.token_inputs import SlotInputs
from modeling.methods.base import LoadContext
from modeling.methods.base_generative import GenerativeMethod, GeneratorRecord, title_end
from modeling.methods.dense_scores import COLLABORATIVE, CollaborativeModel
from modeling.spec import VectorPosition

SLOTS = "item_slots.safetensors"
PLACEHOLDER = 0
"""Slot number of the placeholder; item n has slot n + 1."""
BETWEEN, LINE, CHOOSE, RESPOND = ",", "\n", "\nChoose:\n", "\nNext:\n"

AssignedIdentifiers = tuple[NDArray[np.int32], int]
"""An item of a prompt: the tokens of its title, and its slot number."""


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


@dataclass(frozen=True)
class ChoicePrompt:
    """Token ids of the constant parts of the prompt.

    Attributes:
        prefix: the instruction, with the beginning-of-sequence token if the tokenizer adds one.
        between: between two items of the history.
        line: between two candidates.
        choose: before the candidates.
        respond: after the candidates.
        end: ends the answer.
        words: vocabulary size V; slot n has the token id V + n.
        slots: whether an item's slot is after or before its title.
        instruction: text of ``prefix``.
    """

    prefix: tuple[int, ...]
    between: tuple[int, ...]
    line: tuple[int, ...]
    choose: tuple[int, ...]
    respond: tuple[int, ...]
    end: int
    words: int
    slots: VectorPosition = "after"
    instruction: str = ""

    @classmethod
    def of(
        cls, tokenizer: Any, instruction: str, end: int, words: int, slots: VectorPosition = "after"
    ) -> ChoicePrompt:
        """The prompt for a tokenizer; raises ``ValueError`` if the instruction is empty."""
        if not instruction.strip():
            raise ValueError("history.instruction is empty: an instruction prompt begins with one")
        pieces = TextTokenizer(tokenizer)
        texts = [instruction, BETWEEN, LINE, CHOOSE, RESPOND]
        first, between, line, choose, respond = (tuple(each) for each in pieces.fixed(texts))
        return cls((*pieces.wrap[0], *first), between, line, choose, respond, end, words, slots, instruction)

    def items(self, items: Sequence[AssignedIdentifiers]) -> list[int]:
        """Tokens of a history: titles with their slots."""
        return self._joined(items, self.between)

    def _joined(self, items: Sequence[AssignedIdentifiers], between: tuple[int, ...]) -> list[int]:
        tokens: list[int] = []
        for number, (name, slot) in enumerate(items):
            title, vector = name.tolist(), [self.words + slot]
            tokens += [*(between if number else ()), *(title + vector if self.slots == "after" else vector + title)]
        return tokens

    def candidates(self, items: Sequence[AssignedIdentifiers]) -> list[int]:
        """Tokens after the history: the candidates and the request for an answer."""
        return [*self.choose, *self._joined(items, self.line), *self.respond]

    def answer(self, name: NDArray[np.int32]) -> list[int]:
        """Tokens of the answer: the title and the end token."""
        return [*name.tolist(), self.end]

    def most_candidate_positions(self, candidates: int, title_tokens: int) -> int:
        """Positions of ``candidates`` candidates with titles of ``title_tokens`` tokens, and of the request."""
        return len(self.choose) + candidates * (title_tokens + 1 + len(self.line)) + len(self.respond)

    def most_positions(self, items: int, candidates: int, title_tokens: int) -> int:
        """Upper bound on the positions of a prompt and its answer."""
        history = len(self.prefix) + items * (title_tokens + 1 + len(self.between))
        return history + self.most_candidate_positions(candidates, title_tokens) + title_tokens + 1


def held_titles(text: str, titles: Sequence[str]) -> list[int]:
    """Indices of the titles contained in the first line of a text, ignoring case: the published rule. A text is valid
    if it contains exactly one title."""
    line = _line(text).casefold()
    return [place for place, title in enumerate(titles) if title.casefold() in line]


def exact_title(text: str, titles: Sequence[str]) -> int | None:
    """Index of the first title equal to the first line of a text, or None: the strict rule."""
    line = _line(text)
    return next((place for place, title in enumerate(titles) if title == line), None)


def _line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


class LlaraGenerator(ItemGenerator):
    """Generates the title of one of the candidates that an id model retrieves.

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
        super().__init__(
            model, names, end=prompt.end, prefix=prompt.prefix, history_limit=history_limit, default=default,
            longest=self._longest + 1, inputs=SlotInputs(cast(Tensor, self._inputs.table_SH)),
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
        newest = history[-self.history_limit :]
        slots = [PLACEHOLDER if isinstance(item, FreeItem) else item + 1 for item in newest]
        tokens = self.prompt.items([(self.name(item), slot) for item, slot in zip(newest, slots, strict=True)])
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        later = self.prompt.most_candidate_positions(self.candidates, self._longest)
        return GenerationPrompt(tuple(tokens), rows, later)

    def title(self, row: int) -> str:
        """The title of a row as the model generates it: truncated to the stored tokens."""
        return self._shown(self.names.tokens[row].tolist())

    def with_candidates(self, prompt: GenerationPrompt, rows: Sequence[int]) -> list[int]:
        """The prompt with candidates, without the prefix."""
        return [*prompt.tokens, *self.prompt.candidates([(self.names.tokens[row], row + 1) for row in rows])]

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
