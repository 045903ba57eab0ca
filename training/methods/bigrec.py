"""Trains a language model to write titles freely, which are grounded in the base model's title space (BIGRec)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from modeling.backbone.loading import TextTokenizer, load_backbone, position_limit
from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator
from modeling.generation.factory import decoder_of
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.title_space import TitleSpace
from modeling.methods.bigrec import BigRecGenerator, Collaborative
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.methods.dense_scores import CollaborativeModel
from training.data.splits import Targets
from training.item_ids.assign import AssignedIdentifiers, name_by_titles
from training.loop.examples import Window
from training.loop.fit import FitOptions
from training.methods.base_generative import GenerativeTraining
from training.methods.bigrec_exponents import choose_exponents
from training.methods.bigrec_titles import read_space
from training.methods.next_token import NextTokenModule
from training.recipe import Recipe, RecipeError, TokenSettings


class BigRecSettings(TokenSettings):
    """Settings of BIGRec: unconstrained title generation and grounding."""

    kind: Literal["bigrec"] = "bigrec"
    joined_marks: bool = Field(False, description="tokenize the marks between two titles together, as in running text")
    prompt_loss: bool = Field(True, description="also compute the loss on the titles of the prompt")
    instructed: ClassVar[bool] = True
    builds_on: ClassVar[bool] = True

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` if the recipe cannot generate titles."""
        self.check_titles(recipe)
        self.check_kept(recipe)


class InstructionModule(NextTokenModule):
    """Next-token loss of an instruction prompt: the last item of a window is the answer, the others are in the prompt,
    and all tokens after the instruction have a loss.

    Args:
        model: with its head; a Hugging Face model for causal language modelling.
        names: tokens of every title of the catalog.
        prompt: builds prompts and answers.
        answer_only: restrict the loss to the answer.
        dropout, hidden_dropout: see `NextTokenModule`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        prompt: InstructionPrompt,
        answer_only: bool = False,
        dropout: float,
        hidden_dropout: float = 0.0,
    ) -> None:
        super().__init__(model, names, end=prompt.end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.prompt, self.answer_only = prompt, answer_only

    @property
    def prefix(self) -> tuple[int, ...]:
        """See `NextTokenModule.prefix`: the instruction."""
        return self.prompt.prefix

    def tokens(self, rows: NDArray[np.int64]) -> list[int]:
        """See `NextTokenModule.tokens`: history, request and answer."""
        names = [self.names[row] for row in rows.tolist()]
        return [*self.prompt.read(names[:-1]), *self.prompt.answer(names[-1])]

    def given(self, text: NDArray[np.int64], window: Window) -> int:
        """See `NextTokenModule.given`: the instruction, or with ``answer_only`` all tokens before the answer."""
        answer = len(self.prompt.answer(self.names[int(window.rows[-1])]))
        return len(text) - answer if self.answer_only else len(self.prefix)


class BigRecTraining(GenerativeTraining[BigRecSettings]):
    """Trains a `BigRecGenerator`; the scores of the required dense artifact, if any, weigh its distances."""

    kind, Settings = "bigrec", BigRecSettings
    prompt: InstructionPrompt
    space: TitleSpace
    collaborative: Collaborative | None

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """See `GenerativeTraining.named_items`: item titles."""
        return name_by_titles(self.recipe, self.split, self.job.backbone)

    def prepare(self, options: FitOptions) -> None:
        """See `GenerativeTraining.prepare`: builds the prompt, embeds all titles and loads the dense artifact.

        Raises:
            RecipeError: the longest prompt does not fit into the backbone.
        """
        recipe, named = self.recipe, self.named
        tokenizer = cast(TitleTokenizer, named.spelling).tokenizer
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        self.prompt = InstructionPrompt.of(
            tokenizer, recipe.history.instruction, named.end, joined=self.settings.joined_marks
        )
        longest = self.prompt.most_positions(recipe.history.limit, recipe.history.title_tokens)
        if longest > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={recipe.history.limit} with history.title_tokens={recipe.history.title_tokens} and "
                f"history.instruction takes up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        if self.untuned is None:
            body, _ = load_backbone(recipe.backbone, folder=self.job.backbone, download=True)
            sha256 = None  # small: read anew
        else:
            body, sha256 = decoder_of(self.untuned), None if named.info is None else named.info.sha256
        self.space = read_space(
            body, named.tokens, TextTokenizer(tokenizer).wrap[0], sha256=sha256, cache=options.cache,
            precision=options.precision, console=self.console,
        )  # fmt: skip
        folder = self.job.id_model
        self.collaborative = None if folder is None else CollaborativeModel(folder, len(named.tokens))

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        """See `GenerativeTraining.module`: loss on the answer, with ``method.prompt_loss`` also on the history."""
        return InstructionModule(
            model,
            self.named.tokens,
            prompt=self.prompt,
            answer_only=not self.settings.prompt_loss,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def generator(self) -> ItemGenerator:
        """See `GenerativeTraining.generator`; distances are not weighted."""
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
        """See `GenerativeTraining.chosen_on_validation`: the exponents of the weights."""
        return choose_exponents(cast(BigRecGenerator, generator), targets, console=self.console)

    def keep_choices(self, generator: ItemGenerator, selected: ItemGenerator) -> None:
        """See `GenerativeTraining.keep_choices`: the exponents of the weights."""
        cast(BigRecGenerator, generator).exponents = cast(BigRecGenerator, selected).exponents


METHOD = BigRecTraining
