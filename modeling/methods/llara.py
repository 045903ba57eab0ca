"""LLaRA (Liao et al. 2024): a language model writes the title of one of some candidates.

    <instruction> T1 [slot], T2 [slot], ...
    Choose:
    C1 [slot]
    ...
    Cn [slot]
    Next:
    T<end>

A candidate is a line, as the answer is: what stands before the answer stands before every candidate, and a small model,
which looks up what followed there, finds where candidates begin sooner.

A slot is one input that is no word: the item's vector under a frozen id model, put through an MLP
(`ItemVectorProjector`), or a fixed vector that says nothing (``[PH]``), so that a prompt is as long with the item
vectors as without. It stands after the title, as published, or before it: to write on from what was chosen by its
slot is then to look up what followed there, which a small model can; else the slot has to say how the title before it
began.

When it is served, the candidates are the best eligible items of the id model, which is stored beside it. Of what was
written the first line counts. A text that is a candidate's title is that candidate; else, as published, a text that
holds the title of exactly one candidate, whatever the case of its letters, is that one; else it is nothing.
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
"""Slot of an item whose vector is not shown; item n has slot n + 1."""
BETWEEN, LINE, CHOOSE, RESPOND = ",", "\n", "\nChoose:\n", "\nNext:\n"

AssignedIdentifiers = tuple[NDArray[np.int32], int]
"""An item of a prompt: the tokens of its title, and its slot."""


class ItemVectorProjector(nn.Module):
    """Item vectors of an id model as inputs of a language model: Linear, GELU, Linear. Item vectors and placeholder are
    never trained.

    Args:
        vectors_ND: static rows of the id model's table.
        placeholder_H: the input that says nothing.
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
        """Untrained slots; the placeholder is drawn at the scale of the word embeddings."""
        weight_VH = cast(Tensor, words.weight).detach()
        return cls(vectors_ND, torch.randn(weight_VH.shape[1]) * weight_VH.std().cpu())

    def forward(self) -> Tensor:
        """Placeholder and all items, [1 + N, H]."""
        return torch.cat([self.placeholder_H[None].float(), self.map(self.vectors_ND).float()])


@dataclass(frozen=True)
class ChoicePrompt:
    """Token ids of the pieces that are the same for every user; ``words`` is V, the first id that is a slot, and
    ``slots`` where the slot of an item stands, beside its title."""

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
        """The pieces as ``tokenizer`` has them; raises ValueError where the instruction is empty."""
        if not instruction.strip():
            raise ValueError("history.instruction is empty: an instruction prompt begins with one")
        pieces = TextTokenizer(tokenizer)
        texts = [instruction, BETWEEN, LINE, CHOOSE, RESPOND]
        first, between, line, choose, respond = (tuple(each) for each in pieces.fixed(texts))
        return cls((*pieces.wrap[0], *first), between, line, choose, respond, end, words, slots, instruction)

    def items(self, items: Sequence[AssignedIdentifiers]) -> list[int]:
        """The titles of a history, each with its slot."""
        return self._joined(items, self.between)

    def _joined(self, items: Sequence[AssignedIdentifiers], between: tuple[int, ...]) -> list[int]:
        tokens: list[int] = []
        for number, (name, slot) in enumerate(items):
            title, vector = name.tolist(), [self.words + slot]
            tokens += [*(between if number else ()), *(title + vector if self.slots == "after" else vector + title)]
        return tokens

    def candidates(self, items: Sequence[AssignedIdentifiers]) -> list[int]:
        """What follows the history: the candidates, and the request for an answer."""
        return [*self.choose, *self._joined(items, self.line), *self.respond]

    def answer(self, name: NDArray[np.int32]) -> list[int]:
        """What is to be written after that."""
        return [*name.tolist(), self.end]

    def most_candidate_positions(self, candidates: int, title_tokens: int) -> int:
        """Positions of so many candidates and the request."""
        return len(self.choose) + candidates * (title_tokens + 1 + len(self.line)) + len(self.respond)

    def most_positions(self, items: int, candidates: int, title_tokens: int) -> int:
        """Positions of the longest prompt and its answer."""
        history = len(self.prefix) + items * (title_tokens + 1 + len(self.between))
        return history + self.most_candidate_positions(candidates, title_tokens) + title_tokens + 1


def held_titles(text: str, titles: Sequence[str]) -> list[int]:
    """Places of the titles that occur in the first line of a text, whatever the case: the scorer as published. The text
    is valid where there is exactly one."""
    line = _line(text).casefold()
    return [place for place, title in enumerate(titles) if title.casefold() in line]


def exact_title(text: str, titles: Sequence[str]) -> int | None:
    """Place of the first title that is the first line of a text, letter by letter; the strict scorer."""
    line = _line(text)
    return next((place for place, title in enumerate(titles) if title == line), None)


def _line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()


class LlaraGenerator(ItemGenerator):
    """Writes one of the candidates that an id model finds.

    Args:
        model: the tuned Hugging Face model for causal language modelling.
        names: of the catalog's items, titles.
        prompt: how history and candidates are put to the model.
        slots: inputs of the items.
        retriever: the id model.
        candidates: how many of its best eligible items are put to the model.
        history_limit: newest items read.
        default: beams and tokens it was evaluated with.
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
        """The tuned model, the map of item vectors and what it makes of all items, and the id model."""
        return {
            **super().networks,
            Part.ITEM_SLOTS: self.slots,
            Part.ITEM_INPUTS: self._inputs,
            Part.COLLABORATIVE: self.retriever,
        }

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """The history; candidates follow when it is known what is wanted. A free title has the placeholder."""
        newest = history[-self.history_limit :]
        slots = [PLACEHOLDER if isinstance(item, FreeItem) else item + 1 for item in newest]
        tokens = self.prompt.items([(self.name(item), slot) for item, slot in zip(newest, slots, strict=True)])
        rows = tuple(item for item in history if not isinstance(item, FreeItem))
        later = self.prompt.most_candidate_positions(self.candidates, self._longest)
        return GenerationPrompt(tuple(tokens), rows, later)

    def title(self, row: int) -> str:
        """The title of a row as it is written: cut at the tokens that names have."""
        return self._shown(self.names.tokens[row].tolist())

    def with_candidates(self, prompt: GenerationPrompt, rows: Sequence[int]) -> list[int]:
        """The whole prompt, after the prefix."""
        return [*prompt.tokens, *self.prompt.candidates([(self.names.tokens[row], row + 1) for row in rows])]

    def _write(
        self, prompts: Sequence[GenerationPrompt], wanted: Sequence[ListQuery], search: DecodeSession
    ) -> list[GeneratedList]:
        """The chosen candidate is first; the other candidates and then the rest of the catalog follow in the order of
        the id model, and count as filled."""
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
        """What is written for given candidates (rows), best first; with positions read, tokens written and seconds.
        With one beam it is greedy, until the first end."""
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
        """Eligible rows, best first, as many as candidates or an answer may need; popular ones for no known item."""
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
        filled = places.fill(order)
        rows, scores = np.array(places.rows, np.int64), np.array(places.scores, np.float32)
        return GeneratedList(rows, scores, filled, tuple(texts), length, new, seconds)


def item_vectors(model: CollaborativeModel) -> Tensor:
    """Static rows of an id model's table, as trained, [N, D]."""
    items = model.encoder.items
    return items.table()[: items.size].detach().float()


class LlaraRecord(GeneratorRecord):
    """How an item is chosen among candidates.

    Attributes:
        instruction: of the prompt.
        candidates: how many of them a prompt holds.
        slots: where an item's vector stands, beside its title.
    """

    instruction: str
    candidates: int
    slots: VectorPosition = "after"


class Llara(GenerativeMethod[LlaraRecord]):
    """Beside the language model stand the map from item vectors to inputs of the model, and the id model."""

    kind, Record = "llara", LlaraRecord

    def save_parts(self, folder: Path, model: LlaraGenerator) -> dict[str, Any]:
        """Write the parts and say what they are."""
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
        """Item vectors are those of the id model."""
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
