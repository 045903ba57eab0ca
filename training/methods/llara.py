"""Trains a language model to choose among candidates (LLaRA, Liao et al. 2024), and asks it as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from modeling.backbone.loading import position_limit
from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.token_inputs import with_slots
from modeling.methods.dense_scores import CollaborativeModel
from modeling.methods.llara import (
    PLACEHOLDER,
    ChoicePrompt,
    ItemVectorProjector,
    LlaraGenerator,
    exact_title,
    held_titles,
    item_vectors,
)
from modeling.spec import VectorPosition
from training.data.splits import Targets
from training.item_ids.assign import AssignedIdentifiers, name_by_titles
from training.loop.copy_task import CopyingStage
from training.loop.examples import Window
from training.loop.fit import FitOptions
from training.loop.stages import run_stages
from training.methods.base_generative import GenerativeTraining
from training.methods.next_token import IGNORED, NextTokenBatch, NextTokenModule
from training.recipe import GenerativeSettings, Recipe, RecipeError

BATCH = 32


class LlaraSettings(GenerativeSettings):
    """One of some candidates."""

    kind: Literal["llara"] = "llara"
    candidates: int = Field(20, ge=2, description="titles in a prompt to choose from")
    copying: int = Field(0, ge=0, description="positions of random text read first, to learn to copy; 0: none")
    slots: VectorPosition = Field("after", description="where an item's vector stands: after its title, or before it")
    match: float = Field(
        0.0, ge=0, description="weight of a second loss: half-way through the layers, which candidate's slot is the "
        "answer's",
    )  # fmt: skip
    instructed: ClassVar[bool] = True
    builds_on: ClassVar[bool] = True
    trains_beside: ClassVar[bool] = True

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` where titles cannot be written, or copying cannot be learned."""
        self.check_titles(recipe)
        if self.copying and recipe.adapter.kind != "full":
            raise ValueError(
                f"method.copying trains all of the backbone: adapter.kind={recipe.adapter.kind!r} is not allowed, "
                "'full' is"
            )

    def check_catalog(self, recipe: Recipe, items: int, *, categories: bool) -> None:
        """As many items as candidates; raises `RecipeError`."""
        if items < self.candidates:
            raise RecipeError(
                f"method.candidates={self.candidates}: there are {items} items; set it to {items} or less"
            )


@dataclass(frozen=True)
class LlaraBatch(NextTokenBatch):
    """Also where the slots of the candidates are [B, C], -1 where a prompt has fewer, and which of them is the
    answer's [B]."""

    slots_BC: Tensor
    right_B: Tensor


class LlaraModule(NextTokenModule):
    """Next-token loss on the answer only. Curriculum: at share p of the training a batch shows item vectors with
    probability p, and placeholders in their slots otherwise; the map of item vectors then gets no gradient.

    Where ``match`` is not zero there is a second loss, in batches with item vectors: from the states at the candidates'
    slots, half-way through the layers, a linear map says which is the answer's (softmax over the candidates). It is not
    in the paper, whose model has learned to compare what it reads. The linear map is not part of what is served.

    Args:
        model: with its head; a Hugging Face model for causal language modelling.
        names: tokens of every title of the catalog.
        prompt: the pieces of a prompt.
        slots: inputs of the items.
        candidates: titles to choose from; the answer and random items that the user has not.
        seed: of the curriculum.
        match: weight of the second loss, by the answer; the loss of a token has weight 1.
        dropout, hidden_dropout: see `NextTokenModule`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        prompt: ChoicePrompt,
        slots: ItemVectorProjector,
        candidates: int,
        seed: int,
        match: float = 0.0,
        dropout: float,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__(model, names, end=prompt.end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.prompt, self.slots, self.candidates, self._seed, self._match = prompt, slots, candidates, seed, match
        width = len(slots.placeholder_H)
        self.matching = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 1, bias=False)) if match else None

    @property
    def selected_on(self) -> str:
        """As published. Over the whole catalog a list is the retriever's but for its first place, whoever chose it."""
        return "hr@1"

    def pretrained(self, name: str) -> bool:
        """All but the map of item vectors."""
        return name.startswith("model.")

    def collate(self, windows: Sequence[Window]) -> LlaraBatch:
        """One item of every window, drawn at random, is the answer; what came before it is the history."""
        rng = np.random.default_rng(int(torch.randint(2**31, ())))  # the trainer restores torch's state on resume
        texts, answers, slots, right = [], [], [], []
        for window in windows:
            end = int(rng.integers(1, len(window.rows)))
            history, target = window.rows[:end], int(window.rows[end])
            rows = random_candidates(target, history, len(self.names), self.candidates, rng)
            answers.append(self.prompt.answer(self.names[target]))
            texts.append([*self.prompt.prefix, *self.tokens(history), *self.prompt.candidates(self._named(rows))])
            slots.append(np.flatnonzero(np.asarray(texts[-1]) >= self.prompt.words)[len(history) :])
            right.append(int(np.flatnonzero(rows == target)[0]))
        shape = (len(texts), max(len(text) + len(answer) for text, answer in zip(texts, answers, strict=True)) - 1)
        ids_BT, targets_BT = np.full(shape, self.end, np.int64), np.full(shape, IGNORED, np.int64)
        for number, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            ids_BT[number, : len(text) + len(answer) - 1] = [*text, *answer][:-1]
            targets_BT[number, len(text) - 1 : len(text) + len(answer) - 1] = answer
        slots_BC = np.full((len(texts), max(map(len, slots))), -1, np.int64)
        for number, places in enumerate(slots):
            slots_BC[number, : len(places)] = places
        arrays = (ids_BT, targets_BT, slots_BC, np.array(right, np.int64))
        return LlaraBatch(*map(torch.from_numpy, arrays))

    def forward(self, batch: NextTokenBatch, progress: float = 0.0) -> Tensor:
        """Summed negative log probability of the answers' tokens, and of the answers' slots."""
        if self.matching is None or not self.hybrid(progress):
            return super().forward(batch, progress)
        read, chosen = self.read(batch, progress, output_hidden_states=True), cast(LlaraBatch, batch)
        loss = self.token_loss(*self.with_targets(read.last_hidden_state, batch))
        middle_BTH = read.hidden_states[len(read.hidden_states) // 2]
        slots_BC = chosen.slots_BC.to(middle_BTH.device)
        states_BCH = middle_BTH.gather(1, slots_BC.clamp(min=0)[..., None].expand(-1, -1, middle_BTH.shape[-1]))
        scores_BC = self.matching(states_BCH.float())[..., 0].float().masked_fill(slots_BC < 0, -torch.inf)
        return loss + self._match * F.cross_entropy(scores_BC, chosen.right_B.to(scores_BC.device), reduction="sum")

    def tokens(self, rows: NDArray[np.int64]) -> list[int]:
        """A history, after the prefix."""
        return self.prompt.items(self._named(rows))

    def hybrid(self, progress: float) -> bool:
        """Whether the batch at this share of the training shows item vectors; the same on every process."""
        return bool(np.random.default_rng([self._seed, int(progress * 2**32)]).random() < progress)

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """Word embeddings, and what stands in the slots, [B, T, H]."""
        words = cast(Any, self.model).get_input_embeddings()
        if not self.training or self.hybrid(progress):
            return with_slots(words, self.slots(), ids_BT)
        return with_slots(words, self.slots.placeholder_H[None], ids_BT.clamp(max=self.prompt.words + PLACEHOLDER))

    def _named(self, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int32], int]]:
        return [(self.names[row], row + 1) for row in rows.tolist()]


def random_candidates(
    target: int, history: NDArray[Any], items: int, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The target and ``count`` - 1 random others that are not in the history, in random order; fewer in a small
    catalog."""
    may_N = np.ones(items, bool)
    may_N[history], may_N[target] = False, False
    others = np.flatnonzero(may_N)
    drawn = rng.choice(others, min(count - 1, len(others)), replace=False)
    return rng.permutation(np.append(drawn, target))


def choice_report(writer: LlaraGenerator, targets: Targets, *, seed: int) -> dict[str, float]:
    """The published figures over random candidates, and both with exact titles: not comparable with those over the
    whole catalog. ``hr@1`` is correct / all, as in the published table."""
    rng = np.random.default_rng([seed, 5])
    histories = [history.astype(np.int64) for history in targets.histories()]
    rows_T = targets.rows_T.tolist()
    seen = zip(rows_T, histories, strict=True)
    candidates = [
        random_candidates(row, history, len(writer.names.tokens), writer.candidates, rng) for row, history in seen
    ]
    counts = np.zeros(4)
    for start in range(0, len(rows_T), BATCH):
        part = slice(start, start + BATCH)
        prompts = [writer.prepare(history.tolist()) for history in histories[part]]
        answers = writer.choose(prompts, [rows.tolist() for rows in candidates[part]])
        for (texts, *_), rows, target in zip(answers, candidates[part], rows_T[part], strict=True):
            titles = [writer.title(row) for row in rows.tolist()]
            held, exact = held_titles(texts[0].text, titles), exact_title(texts[0].text, titles)
            valid = len(held) == 1
            counts += [valid, valid and rows[held[0]] == target, exact is not None,
                       exact is not None and rows[exact] == target]  # fmt: skip
    names = ("valid_ratio", "hr@1", "strict_valid_ratio", "strict_hr@1")
    return {"users": len(rows_T), "candidates": writer.candidates} | dict(
        zip(names, (counts / len(rows_T)).tolist(), strict=True)
    )


class LlaraTraining(GenerativeTraining[LlaraSettings]):
    """See the module. Batches of placeholders give the map of item vectors no gradient, and those of other processes
    would wait for it: it trains in one process."""

    kind, Settings = "llara", LlaraSettings
    one_process = True
    prompt: ChoicePrompt
    slots: ItemVectorProjector
    retriever: CollaborativeModel
    seed: int

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """Titles."""
        return name_by_titles(self.recipe, self.split, self.job.backbone)

    def prepare(self, options: FitOptions) -> None:
        """The id model, and inputs made of its item vectors."""
        recipe, named, folder = self.recipe, self.named, self.job.id_model
        if folder is None:
            raise RecipeError(
                f"recipe {recipe.name!r} takes candidates and item vectors from another model: give it with "
                "--set requires=sasrec --id-model DIR"
            )
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        words = cast(Any, named.model).get_input_embeddings()
        self.prompt = ChoicePrompt.of(
            cast(TitleTokenizer, named.spelling).tokenizer, recipe.history.instruction, named.end,
            words.weight.shape[0], self.settings.slots,
        )  # fmt: skip
        given = (recipe.history.limit, self.settings.candidates, recipe.history.title_tokens)
        if (longest := self.prompt.most_positions(*given)) > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={given[0]} and method.candidates={given[1]} with history.title_tokens={given[2]} take "
                f"up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        self.retriever, self.seed = CollaborativeModel(folder, len(named.tokens)), options.seed
        self.slots = ItemVectorProjector.beside(words, item_vectors(self.retriever))

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        """Loss on the answer."""
        return LlaraModule(
            model,
            self.named.tokens,
            prompt=self.prompt,
            slots=self.slots,
            candidates=self.settings.candidates,
            seed=self.seed,
            match=self.settings.match,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def generator(self) -> ItemGenerator:
        """Over the candidates of the id model."""
        return LlaraGenerator(
            self.named.model,
            self.names,
            prompt=self.prompt,
            slots=self.slots,
            retriever=self.retriever,
            candidates=self.settings.candidates,
            history_limit=self.recipe.history.limit,
            default=GenerationSettings(self.settings.beams, int(np.diff(self.named.tokens.offsets).max()) + 1),
        )

    def before_training(self, model: nn.Module, options: FitOptions) -> None:
        """Learn to copy: a stage that a run which was killed later does not repeat."""
        if not self.settings.copying:
            return
        assert self.named.end is not None, "titles are closed by the tokenizer's end token"
        stage = CopyingStage(
            model, end=self.named.end, positions=self.settings.copying, seed=options.seed,
            bf16=options.precision == "bf16", console=self.console,
        )  # fmt: skip
        run_stages([stage], options.work / "stages", self.console)

    def epoch_figures(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, float]:
        """The published ones."""
        return choice_report(cast(LlaraGenerator, generator), targets, seed=seed)

    def chosen_on_validation(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, Any]:
        """The published figures."""
        return {"choice": choice_report(cast(LlaraGenerator, generator), targets, seed=seed)}


METHOD = LlaraTraining
