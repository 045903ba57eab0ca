"""Trains a language model to write titles freely, which are grounded in the base model's title space (BIGRec)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress
from torch import nn

from modeling.backbone.loading import TextTokenizer, load_backbone, position_limit
from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.bigrec import BigRecGenerator, Collaborative
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.methods.bigrec_title_space import TitleSpace
from modeling.methods.dense_scores import CollaborativeModel
from training.data.splits import Targets
from training.item_ids.assign import AssignedIdentifiers, name_by_titles
from training.loop.budget import timed
from training.loop.fit import FitOptions
from training.methods.base_generative import GenerativeTraining
from training.methods.bigrec_exponents import choose_exponents
from training.methods.next_token import NextTokenModule
from training.recipe import GenerativeSettings, Recipe, RecipeError


class BigRecSettings(GenerativeSettings):
    """Titles written freely, and grounded."""

    kind: Literal["bigrec"] = "bigrec"
    instructed: ClassVar[bool] = True
    builds_on: ClassVar[bool] = True

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` where titles cannot be written."""
        self.check_titles(recipe)


class InstructionModule(NextTokenModule):
    """Next-token loss for an instruction prompt: the last item of a window is the answer, the others are in the
    prompt, and everything but the instruction has a loss.

    Args:
        model: with its head; a Hugging Face model for causal language modelling.
        names: tokens of every title of the catalog.
        prompt: the pieces of a prompt.
        dropout, hidden_dropout: see `NextTokenModule`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        prompt: InstructionPrompt,
        dropout: float,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__(model, names, end=prompt.end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.prompt = prompt

    @property
    def prefix(self) -> tuple[int, ...]:
        """The instruction."""
        return self.prompt.prefix

    def tokens(self, rows: NDArray[np.int64]) -> list[int]:
        """History, request and answer."""
        names = [self.names[row] for row in rows.tolist()]
        return [*self.prompt.read(names[:-1]), *self.prompt.answer(names[-1])]


class BigRecTraining(GenerativeTraining[BigRecSettings]):
    """See the module. The artifact that it builds on weighs distances by its scores."""

    kind, Settings = "bigrec", BigRecSettings
    prompt: InstructionPrompt
    space: TitleSpace
    collaborative: Collaborative | None

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """Titles."""
        return name_by_titles(self.recipe, self.split, self.job.backbone)

    def prepare(self, options: FitOptions) -> None:
        """Read the titles of the catalog with the base model."""
        recipe, named = self.recipe, self.named
        tokenizer = cast(TitleTokenizer, named.spelling).tokenizer
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        self.prompt = InstructionPrompt.of(tokenizer, recipe.history.instruction, named.end)
        longest = self.prompt.most_positions(recipe.history.limit, recipe.history.title_tokens)
        if longest > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={recipe.history.limit} with history.title_tokens={recipe.history.title_tokens} and "
                f"history.instruction takes up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        body, _ = load_backbone(recipe.backbone, folder=self.job.backbone, download=True)
        with Progress(console=self.console, transient=True) as bar:
            task = bar.add_task(f"reading {len(named.tokens)} titles with the base model", total=len(named.tokens))
            self.space = TitleSpace.of_catalog(
                body, named.tokens, TextTokenizer(tokenizer).wrap[0], progress=timed(bar, task, "reading titles")
            )
        folder = self.job.id_model
        self.collaborative = None if folder is None else CollaborativeModel(folder, len(named.tokens))

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        """Loss on the titles of the prompt and the answer."""
        return InstructionModule(
            model, self.named.tokens, prompt=self.prompt, dropout=dropout, hidden_dropout=hidden_dropout
        )

    def generator(self) -> ItemGenerator:
        """Free search and grounding, distances unweighted."""
        longest = int(np.diff(self.named.tokens.offsets).max()) + self.prompt.answer_extra
        return BigRecGenerator(
            self.named.model,
            self.names,
            prompt=self.prompt,
            space=self.space,
            popularity_N=self.popularity_N,
            collaborative=self.collaborative,
            history_limit=self.recipe.history.limit,
            default=GenerationSettings(self.settings.beams, longest),
        )

    def chosen_on_validation(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, Any]:
        """The exponents of the weights."""
        return choose_exponents(cast(BigRecGenerator, generator), targets, console=self.console)

    def keep_choices(self, generator: ItemGenerator, selected: ItemGenerator) -> None:
        """The exponents."""
        cast(BigRecGenerator, generator).exponents = cast(BigRecGenerator, selected).exponents


METHOD = BigRecTraining
