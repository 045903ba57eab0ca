"""Trains a language model to choose among candidates (LLaRA, Liao et al. 2024), with the published metrics."""

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
from modeling.methods.llara import ItemVectorProjector, LlaraGenerator, item_vectors
from modeling.methods.llara_prompt import PLACEHOLDER, ChoicePrompt, exact_title, held_titles
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
    """Settings of LLaRA."""

    kind: Literal["llara"] = "llara"
    candidates: int = Field(20, ge=2, description="candidates in a prompt")
    copying: int = Field(0, ge=0, description="tokens of random text in the copying stage; 0: no such stage")
    slots: VectorPosition = Field("after", description="position of an item's vector: after its title or before it")
    match: float = Field(
        0.0, ge=0, description="weight of a second loss, which predicts the answer's slot from states halfway through "
        "the layers; 0: none",
    )  # fmt: skip
    instructed: ClassVar[bool] = True
    builds_on: ClassVar[bool] = True
    trains_beside: ClassVar[bool] = True

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` if the recipe cannot generate titles, or ``copying`` is set with a frozen backbone."""
        self.check_titles(recipe)
        if self.copying and recipe.adapter.kind != "full":
            raise ValueError(
                f"method.copying trains all of the backbone: adapter.kind={recipe.adapter.kind!r} is not allowed, "
                "'full' is"
            )

    def check_catalog(self, recipe: Recipe, items: int, *, categories: bool) -> None:
        """Raises `RecipeError` if the catalog has fewer items than ``candidates``."""
        if items < self.candidates:
            raise RecipeError(
                f"method.candidates={self.candidates}: there are {items} items; set it to {items} or less"
            )


@dataclass(frozen=True)
class LlaraBatch(NextTokenBatch):
    """Adds the positions of the candidates' slots.

    Attributes:
        slots_BC: positions; -1 if a prompt has fewer candidates.
        right_B: index of the answer among the candidates.
    """

    slots_BC: Tensor
    right_B: Tensor


class LlaraModule(NextTokenModule):
    """Next-token loss on the answer only. Curriculum: after a share p of the training a batch has item vectors in its
    slots with probability p, and placeholders otherwise; the map of item vectors gets no gradient from placeholders.

    If ``match`` is not zero, batches with item vectors have a second loss: a linear map of the states at the slots of
    the candidates, halfway through the layers, predicts the answer (softmax over the candidates). It is not in the
    paper, whose larger model can compare items already. The linear map is not used when serving.

    Args:
        model: with its head; a Hugging Face model for causal language modelling.
        names: tokens of every title of the catalog.
        prompt: builds prompts and answers.
        slots: input embeddings of the items.
        candidates: number of candidates: the answer and random items outside the history.
        seed: of the curriculum.
        match: weight of the second loss per answer; the loss of a token has weight 1.
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
        """See `TrainedModule.selected_on`: Hit@1 among candidates, as published. A list over the whole catalog differs
        from the retriever's in its first place only."""
        return "hr@1"

    def pretrained(self, name: str) -> bool:
        """See `TrainedModule.pretrained`: all weights but the map of item vectors and the second loss."""
        return name.startswith("model.")

    def collate(self, windows: Sequence[Window]) -> LlaraBatch:
        """A batch with one target per window, drawn at random; the items before it are the history."""
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
        """Summed negative log probability of the answers' tokens, plus the second loss if it applies."""
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
        """See `NextTokenModule.tokens`: the history, without candidates."""
        return self.prompt.items(self._named(rows))

    def hybrid(self, progress: float) -> bool:
        """Whether a batch at this share of the training has item vectors; the same in every process."""
        return bool(np.random.default_rng([self._seed, int(progress * 2**32)]).random() < progress)

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """See `NextTokenModule.inputs`: word embeddings, and item vectors or placeholders in the slots."""
        words = cast(Any, self.model).get_input_embeddings()
        if not self.training or self.hybrid(progress):
            return with_slots(words, self.slots(), ids_BT)
        return with_slots(words, self.slots.placeholder_H[None], ids_BT.clamp(max=self.prompt.words + PLACEHOLDER))

    def _named(self, rows: NDArray[np.int64]) -> list[tuple[NDArray[np.int32], int]]:
        return [(self.names[row], row + 1) for row in rows.tolist()]


def random_candidates(
    target: int, history: NDArray[Any], items: int, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The target and ``count`` - 1 random items outside the history, in random order [count]; fewer in a small
    catalog."""
    may_N = np.ones(items, bool)
    may_N[history], may_N[target] = False, False
    others = np.flatnonzero(may_N)
    drawn = rng.choice(others, min(count - 1, len(others)), replace=False)
    return rng.permutation(np.append(drawn, target))


def choice_report(writer: LlaraGenerator, targets: Targets, *, seed: int) -> dict[str, float]:
    """The published metrics (valid ratio and Hit@1) over random candidates, and both with exact matching of titles.
    They are not comparable with metrics over the whole catalog. ``hr@1`` is correct / all, as published."""
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
    """Trains a `LlaraGenerator`, in one process: batches of placeholders give the map of item vectors no gradient, for
    which other processes would wait."""

    kind, Settings = "llara", LlaraSettings
    one_process = True
    prompt: ChoicePrompt
    slots: ItemVectorProjector
    retriever: CollaborativeModel
    seed: int

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """See `GenerativeTraining.named_items`: item titles."""
        return name_by_titles(self.recipe, self.split, self.job.backbone)

    def prepare(self, options: FitOptions) -> None:
        """See `GenerativeTraining.prepare`: loads the id model, and builds the prompt and the map of item vectors.

        Raises:
            RecipeError: there is no id model, or the longest prompt does not fit into the backbone.
        """
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
        """See `GenerativeTraining.module`: loss on the answer."""
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
        """See `GenerativeTraining.generator`; candidates come from the id model."""
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
        """Run the copying stage, if ``method.copying`` is set; a resumed run does not repeat it."""
        if not self.settings.copying:
            return
        assert self.named.end is not None, "titles are closed by the tokenizer's end token"
        stage = CopyingStage(
            model, end=self.named.end, positions=self.settings.copying, seed=options.seed,
            bf16=options.precision == "bf16", console=self.console,
        )  # fmt: skip
        run_stages([stage], options.work / "stages", self.console)

    def epoch_figures(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, float]:
        """See `GenerativeTraining.epoch_figures`: those of `choice_report`."""
        return choice_report(cast(LlaraGenerator, generator), targets, seed=seed)

    def chosen_on_validation(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, Any]:
        """See `GenerativeTraining.chosen_on_validation`: figures of `choice_report`; nothing is chosen."""
        return {"choice": choice_report(cast(LlaraGenerator, generator), targets, seed=seed)}


METHOD = LlaraTraining
