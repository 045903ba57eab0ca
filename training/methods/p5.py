"""Trains one decoder on the prompts of all task families (P5).

The loss of a prompt is the mean over the tokens of its answer, including the end token; all prompts have equal weight
(Geng et al. 2022, section 3.2). In a decoder the items of a history are targets as well: each item is an answer to the
prompt before it, so one pass over a sequence trains all its prefixes.

Shape legend: B texts, T tokens, P tokens with a loss, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator
from modeling.generation.item_tokenizer import CODE_END
from modeling.generation.whole_word_embedding import WholeWordEmbedding, read
from modeling.methods import Loaded
from modeling.methods.base_generative import trie_of
from modeling.methods.p5 import P5Generator, p5_generator
from modeling.methods.p5_files import Tasks
from modeling.methods.p5_prompts import TaskText, longest_prompt
from training.data.splits import Split, Targets
from training.effects import Effect, code_effects
from training.item_ids.assign import AssignedIdentifiers, decoder, name_by_codes
from training.loop.examples import Window
from training.loop.fit import FitOptions
from training.methods.base_generative import GenerativeTraining
from training.methods.next_token import IGNORED, NextTokenBatch, NextTokenModule
from training.methods.p5_evaluation import task_figures
from training.methods.p5_examples import TaskExamples, TasksSpec, families_of, language_of
from training.older_recipes import upgraded
from training.recipe import CodesSpec, GenerativeSettings, Recipe

STEP = 1.5
"""Largest ratio of lengths of texts in one padded batch; a history is about ten times as long as a rating prompt."""


class P5Settings(GenerativeSettings):
    """Settings of P5: task families as prompts, with item identifiers."""

    kind: Literal["p5"] = "p5"
    codes: CodesSpec = CodesSpec()
    tasks: TasksSpec = TasksSpec()

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """Conditions under which the settings of codes and of task families have an effect."""

        def families(*names: str) -> Effect:
            def acts(recipe: Recipe) -> bool:
                return cast(P5Settings, recipe.method).tasks.has(*names)

            return Effect(f"task families with {' or '.join(names)}", acts)

        shares = {f"tasks.{name}": families(name) for name in ("rating", "direct", "explanation", "review")}
        texts = {"tasks.candidates": families("direct"), "tasks.text_tokens": families("explanation", "review")}
        return {**code_effects(), **shares, **texts}

    @property
    def codes_spec(self) -> CodesSpec:
        """Settings of the item identifiers."""
        return self.codes

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` if the network cannot read the prompts."""
        if recipe.history.form != "codes":
            raise ValueError(f"tasks are put with codes: history.form={recipe.history.form!r} has none")
        if recipe.backbone.kind != "decoder":
            raise ValueError(f"tasks are put to a decoder: backbone.kind={recipe.backbone.kind!r} is not allowed")
        self.check_own_network(recipe)


@dataclass(frozen=True)
class P5Batch:
    """Texts grouped by length, each group with the weights [P] of its target tokens; ``count``: number of answers."""

    parts: tuple[tuple[NextTokenBatch, Tensor], ...]
    count: int


class P5Module(NextTokenModule):
    """Loss on the answers of all families.

    Args:
        model: a Hugging Face model for causal language modelling, with its head.
        names: codes of every item as tokens.
        end, dropout, hidden_dropout: see `NextTokenModule`.
        examples: draws the texts of a window.
        whole_words: whole-word embedding, trained with the model; None for a model without one.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        end: int,
        dropout: float,
        hidden_dropout: float,
        examples: TaskExamples,
        whole_words: WholeWordEmbedding | None,
    ) -> None:
        super().__init__(model, names, end=end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.examples, self.whole_words = examples, whole_words

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """Token embeddings plus whole-word embeddings, [B, T, H]."""
        return read(self.model, ids_BT, self.whole_words)

    def collate(self, windows: Sequence[Window]) -> P5Batch:  # type: ignore[override]
        """The texts of all windows."""
        return self.batch([text for window in windows for text in self.examples.of(window)])

    def batch(self, texts: Sequence[TaskText]) -> P5Batch:
        """Texts as tokens, grouped by length."""
        ordered = sorted(texts, key=lambda text: len(text.tokens))
        groups = groupby(ordered, key=lambda text: int(np.log(len(text.tokens)) / np.log(STEP)))
        return P5Batch(
            tuple(self._padded(list(group)) for _, group in groups), sum(len(text.answers) for text in texts)
        )

    def forward(self, batch: P5Batch, progress: float = 0.0) -> Tensor:  # type: ignore[override]
        """Sum over the answers of the mean negative log probability of their tokens."""
        head = cast(Any, self.model).get_output_embeddings()
        total = head.weight.new_zeros(())
        for part, weights_P in batch.parts:
            states_PH, targets_P = self.states(part)
            losses_P = F.cross_entropy(head(states_PH).float(), targets_P, reduction="none")
            total = total + (losses_P * weights_P.to(losses_P)).sum()
        return cast(Tensor, total)

    def _padded(self, texts: Sequence[TaskText]) -> tuple[NextTokenBatch, Tensor]:
        shape = (len(texts), max(len(text.tokens) for text in texts))
        ids_BT, targets_BT = np.full(shape, self.end, np.int64), np.full(shape, IGNORED, np.int64)
        weights_BT = np.zeros(shape, np.float32)
        for row, text in enumerate(texts):
            ids_BT[row, 1 : len(text.tokens)] = text.tokens[:-1]  # every text begins with the end token
            for start, stop in text.answers:
                targets_BT[row, start:stop] = text.tokens[start:stop]
                weights_BT[row, start:stop] = 1 / (stop - start)
        weights_P = torch.from_numpy(weights_BT[targets_BT != IGNORED])
        return NextTokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT)), weights_P


def name_tasks(
    recipe: Recipe, settings: P5Settings, split: Split, *, work: Path, seed: int, console: Console
) -> tuple[AssignedIdentifiers, Tasks]:
    """The item codes with the network to train, and the vocabulary of prompts.

    Args:
        recipe, settings: of this method.
        split: whose catalog is used.
        work: folder of the run; see `name_by_codes`.
        seed: of codes.
        console: for progress.

    Raises:
        RecipeError: the data lacks columns that codes or tasks need.
    """
    spec, limit = settings.tasks, recipe.history.limit
    families = families_of(spec, split.dataset)  # refused before work is done
    coded = name_by_codes(recipe, settings.codes, split, work=work, seed=seed, console=console)
    names, report = coded.tokens, {"codes": coded.figures, "families": list(families)}
    language = language_of(split, coded.spelling, spec.vocabulary, work)
    positions = longest_prompt(names, limit, spec.text_tokens, spec.candidates)
    model = decoder(recipe, language.vocabulary, positions, seed)
    words = WholeWordEmbedding(language.begins_V, recipe.backbone.width) if spec.whole_words else None
    console.print(f"task families: {', '.join(families)}; {language.vocabulary:,} tokens")
    named = AssignedIdentifiers(model, coded.spelling, names, CODE_END, report)
    return named, Tasks(language, families, words)


class P5Training(GenerativeTraining[P5Settings]):
    """Trains a `modeling.methods.p5.P5Generator`."""

    kind, Settings = "p5", P5Settings
    tasks: Tasks
    examples: TaskExamples

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """See `GenerativeTraining.named_items`: identifiers."""
        named, self.tasks = name_tasks(
            self.recipe, self.settings, self.split, work=work, seed=seed, console=self.console
        )
        return named

    def prepare(self, options: FitOptions) -> None:
        """See `GenerativeTraining.prepare`: the training texts."""
        self._trie = trie_of(self.named.tokens, CODE_END)
        self.examples = TaskExamples(
            self.tasks.language, self.named.tokens, self.tasks.families, self.settings.tasks, self.split,
            options.fitted_on,
        )  # fmt: skip

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        """See `GenerativeTraining.module`: loss on the answers of all families."""
        found = P5Module(
            model, self.named.tokens, end=CODE_END, dropout=dropout, hidden_dropout=hidden_dropout,
            examples=self.examples, whole_words=self.tasks.whole_words,
        )  # fmt: skip
        found.from_scratch = self.recipe.backbone.own
        return found

    def generator(self) -> ItemGenerator:
        """See `GenerativeTraining.generator`; histories are encoded as sequential prompts."""
        default = GenerationSettings(self.settings.beams, int(np.diff(self.named.tokens.offsets).max()) + 1)
        limit = self.recipe.history.limit
        return p5_generator(
            self.named.model, self.names, self._trie, self.tasks, end=CODE_END, history_limit=limit, default=default
        )

    def chosen_on_validation(self, generator: ItemGenerator, targets: Targets, seed: int) -> dict[str, Any]:
        """See `GenerativeTraining.chosen_on_validation`: metrics of all families; nothing is chosen."""
        with self.console.status("figures of all task families on validation"):
            writer = cast(P5Generator, generator)
            return {"tasks": task_figures(writer, self.split, targets, self.settings.tasks, seed=seed)}

    @classmethod
    def other_figures(cls, loaded: Loaded[Any], split: Split, targets: Targets, seed: int) -> dict[str, Any]:
        """See `TrainingMethod.other_figures`: metrics of all families; empty on other data, whose users are unknown."""
        manifest = loaded.manifest
        if split.dataset.sha256 != manifest.data_sha256:
            return {}
        spec = TasksSpec.model_validate(upgraded(manifest.recipe_data)["method"]["tasks"])
        figures = task_figures(loaded.model, split, targets, spec, fitted_on=manifest.fitted_on, seed=seed)
        return {"tasks": figures}


METHOD = P5Training
