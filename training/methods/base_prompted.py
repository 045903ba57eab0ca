"""Training shared by rankers that prompt a language model: the loss is on the answer token after the prompt."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from modeling.backbone.loading import position_limit
from modeling.encoder.prompt import TitleTokens
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.methods.dense_scores import CollaborativeModel
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec
from training.effects import Effect
from training.item_ids.assign import AssignedIdentifiers, name_by_titles
from training.loop.examples import Window
from training.loop.fit import FitOptions
from training.methods.base_generative import GenerativeTraining
from training.methods.next_token import NextTokenModule
from training.recipe import OptimizerSpec, Recipe, RecipeError, TokenSettings, pretrained


class PromptedSettings(TokenSettings):
    """Settings of rankers that prompt a language model."""

    labels: tuple[str, ...] = Field(description="texts of the answers; each must be a single token after the prompt")
    candidates: int = Field(20, ge=1, description="candidates that the model orders; others follow in retrieval order")
    instructed: ClassVar[bool] = True
    builds_on: ClassVar[bool] = True

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """``beams`` has no effect, since no text is generated."""
        return {**super().effects(), "beams": Effect("a method that writes", lambda recipe: False)}

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` if titles cannot be read, or labels are equal or have spaces around them."""
        self.check_titles(recipe)
        self.check_kept(recipe)
        if len(set(self.labels)) < len(self.labels) or not all(label.strip() == label != "" for label in self.labels):
            raise ValueError(
                f"method.labels={list(self.labels)}: labels are different texts without spaces around them"
            )

    def check_catalog(self, recipe: Recipe, items: int, *, categories: bool) -> None:
        """Raises `RecipeError` if the catalog has fewer items than ``candidates``."""
        if items < self.candidates:
            raise RecipeError(
                f"method.candidates={self.candidates}: there are {items} items; set it to {items} or less"
            )


class AnswerModule(NextTokenModule):
    """Loss on one token, the answer, after the prompt of one target.

    Args:
        model, names, end, dropout, hidden_dropout: see `NextTokenModule`.
        texts: returns the tokens of prompt and answer for a window, prefix included; deterministic for a window.
        selected_on: validation metric whose maximum selects the epoch.
    """

    def __init__(
        self, model: nn.Module, names: TitleTokens, *, end: int, texts: Any, selected_on: str, **dropout: float
    ) -> None:
        super().__init__(model, names, end=end, dropout=dropout["dropout"], hidden_dropout=dropout["hidden_dropout"])
        self._texts, self._selected_on = texts, selected_on

    @property
    def last_only(self) -> bool:
        """See `TrainedModule.last_only`: each target has a prompt of its own."""
        return True

    @property
    def selected_on(self) -> str:
        """See `TrainedModule.selected_on`."""
        return self._selected_on

    def text(self, window: Window) -> NDArray[np.int64]:
        """See `NextTokenModule.text`: prompt and answer."""
        return np.asarray(self._texts(window), np.int64)

    def given(self, text: NDArray[np.int64], window: Window) -> int:
        """See `NextTokenModule.given`: all tokens but the answer."""
        return len(text) - 1


S = TypeVar("S", bound=PromptedSettings)


class PromptedTraining(GenerativeTraining[S]):
    """Trains a `modeling.methods.base_prompted.PromptRanker`; candidates come from the required dense artifact, if any.

    Attributes:
        prompt: builds the prompt of a history and its candidates.
        retriever: retrieves candidates; None: the most popular items are taken.
    """

    lists_each_epoch = False
    selected_on: ClassVar[str]
    prompt: Any
    retriever: CollaborativeModel | None

    @abstractmethod
    def make_prompt(self, tokenizer: Any) -> tuple[Any, int]:
        """The prompt, and an upper bound on its positions with the answer; raises ``ValueError``."""

    @abstractmethod
    def texts(self, window: Window) -> list[int]:
        """Tokens of the prompt and the answer of a window."""

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """See `GenerativeTraining.named_items`: item titles."""
        return name_by_titles(self.recipe, self.split, self.job.backbone)

    def prepare(self, options: FitOptions) -> None:
        """See `GenerativeTraining.prepare`: builds the prompt and loads the dense artifact."""
        recipe, named = self.recipe, self.named
        try:
            self.prompt, longest = self.make_prompt(cast(TitleTokenizer, named.spelling).tokenizer)
        except ValueError as error:
            raise RecipeError(f"recipe {recipe.name!r}: method.labels or history.instruction: {error}") from error
        if longest > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={recipe.history.limit} with history.title_tokens={recipe.history.title_tokens} takes "
                f"up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        folder = self.job.id_model
        self.retriever = None if folder is None else CollaborativeModel(folder, len(named.tokens))

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        """See `GenerativeTraining.module`: loss on the answer token."""
        assert self.named.end is not None, "titles are closed by the tokenizer's end token"
        return AnswerModule(
            model, self.named.tokens, end=self.named.end, texts=self.texts, selected_on=self.selected_on,
            dropout=dropout, hidden_dropout=hidden_dropout,
        )  # fmt: skip

    def ranker_parts(self) -> dict[str, Any]:
        """Constructor arguments shared by all rankers."""
        return {
            "prompt": self.prompt, "end": self.named.end, "retriever": self.retriever,
            "candidates": self.settings.candidates, "titles": self.recipe.history.limit,
        }  # fmt: skip

    def tokens(self, rows: Sequence[int]) -> list[NDArray[np.int32]]:
        """Title tokens of catalog rows."""
        return [self.named.tokens[row] for row in rows]


def prompted_recipe(
    name: str, backbone: str, method: PromptedSettings, *, instruction: str, alpha: int, epochs: int, patience: int,
    **about: Any,
) -> Recipe:  # fmt: skip
    """A recipe of a ranker that prompts a language model: ten titles, and LoRA of rank 8; ``tiny`` is trained fully.

    Args:
        name: of the recipe.
        backbone: source of the language model.
        method: its settings.
        instruction: first text of the prompt.
        alpha: of LoRA.
        epochs, patience: see `OptimizerSpec`.
        about: summary, source and requires of the recipe.

    Raises:
        RecipeError: the backbone is no causal language model.
    """
    if backbone in ("none", "minilm"):
        raise RecipeError(f"{name!r} asks a causal language model: backbone {backbone!r} is not allowed")
    small = not pretrained(backbone)
    return Recipe(
        name=name,
        history=HistorySpec(
            form="titles", limit=10, title_tokens=10 if small else 16, instruction=instruction, dropout=0.0
        ),
        backbone=BackboneSpec(source=backbone, dropout=0.0),
        adapter=AdapterSpec(kind="full" if small else "lora", rank=8, alpha=alpha, dropout=0.0 if small else 0.05),
        items=ItemsSpec(tower="id"),
        optimizer=OptimizerSpec(
            rate=1e-4, backbone_rate=1e-4, schedule="linear", warmup=0.1, epochs=epochs, patience=patience,
            positions=16, weight_decay=0.0,
        ),
        method=method,
        **about,
    )  # fmt: skip


def others_at_random(
    rows: Sequence[int] | NDArray[Any], items: int, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """``count`` distinct random items outside ``rows``, or all of them if there are fewer."""
    may_N = np.ones(items, bool)
    may_N[np.asarray(rows, np.int64)] = False
    others = np.flatnonzero(may_N)
    drawn: NDArray[np.int64] = rng.choice(others, min(count, len(others)), replace=False).astype(np.int64)
    return drawn
