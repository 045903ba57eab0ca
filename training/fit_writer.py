"""Trains a language model to write items, along the trie of their names or freely, and makes the writer of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import set_seed

from index.trie import TokenTrie
from modeling import adapter
from modeling.backbone import Pieces, load_backbone, position_limit
from modeling.choosing_writer import ChoicePrompt, ChoosingWriter, ItemSlots, item_vectors
from modeling.generation import WriteSettings
from modeling.generative_artifact import writer_of
from modeling.grounded_writer import Collaborative, GroundedWriter
from modeling.grounding_files import CollaborativeModel
from modeling.instruction import InstructionPrompt
from modeling.spelling import CODE_END, CodeSpelling, TitleSpelling
from modeling.task_writer import TaskWriter
from modeling.title_space import TitleSpace
from modeling.writer import Names, Writer
from training.budget import timed
from training.choosing import ChoosingModule, choice_report
from training.copying import teach_copying
from training.data.splits import FittedOn, Split, Targets
from training.encoded import EncodedModule
from training.exponents import choose_exponents
from training.fit import FitOptions, Trained, sample_targets, train_module
from training.module import TrainedModule
from training.naming import Named, name_items
from training.objectives.children import ChildrenSoftmax
from training.recipes.base import Recipe, RecipeError
from training.task_examples import TaskExamples
from training.task_figures import task_figures
from training.task_module import TaskModule
from training.trainer import last_complete_checkpoint
from training.writing import InstructedModule, PathModule, WritingModule, written_metrics


@dataclass(frozen=True)
class FittedWriter(Trained):
    """A trained writer and how it came about; ``report`` has figures about the names it writes and the weights it
    uses."""

    writer: Writer
    report: dict[str, Any]


def fit_writer(
    recipe: Recipe,
    split: Split,
    options: FitOptions,
    *,
    folder: Path | None,
    collaborative: Path | None = None,
    selected: FittedWriter | None = None,
    console: Console,
) -> FittedWriter:
    """Train a recipe that writes; the best epoch on validation is kept.

    Args:
        recipe: with ``scoring`` other than ``dense``.
        split: whose training part is learned from.
        options: how the run is carried out.
        folder: the backbone, where it was made here; None: ``recipe.backbone.source``.
        collaborative: dense artifact of the same catalog whose scores a grounded writer weighs.
        selected: of a refit, which has seen validation: the fit before it, whose exponents and figures are kept.
        console: for progress.

    Raises:
        RecipeError: see `name_items`.
    """
    set_seed(options.seed)
    named = name_items(recipe, split, folder=folder, work=options.work, seed=options.seed, console=console)
    popularity_N = split.popularity(options.fitted_on)
    names = Names(named.tokens, np.argsort(-popularity_N, kind="stable"), named.spelling)
    build: _Trie | _Tasks | _Ground | _Choose
    if recipe.scoring == "ground":
        build = _Ground.of(recipe, named, names, popularity_N, folder, collaborative, console)
    elif recipe.scoring == "choose":
        build = _Choose.of(recipe, named, names, collaborative, options.seed)
    elif recipe.tasks is not None:
        build = _Tasks(recipe, named, names, split.dataset.user_ids, split, options.fitted_on)
    else:
        build = _Trie(recipe, named, names, split.dataset.user_ids)
    trained_whole = recipe.backbone.own or recipe.adapter.kind == "full"
    adapted = named.model.requires_grad_(True) if trained_whole else adapter.attach(named.model, recipe.adapter)
    module = build.module(adapted, recipe.history.dropout, recipe.backbone.dropout if recipe.backbone.own else 0.0)
    if isinstance(module, WritingModule):
        module.from_scratch = recipe.backbone.own
    targets = sample_targets(split.validation, recipe.writing.validation_users, options.seed)
    if recipe.writing.copying and last_complete_checkpoint(options.work) is None:  # a checkpoint has learned it
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        learned = teach_copying(
            adapted, end=named.end, positions=recipe.writing.copying, seed=options.seed,
            bf16=options.precision == "bf16", console=console,
        )  # fmt: skip
        console.print(f"copying: {learned['accuracy']:.1%} of random tokens are right")
    set_seed(options.seed)

    def figures() -> dict[str, float]:
        writer = build.writer()
        found = written_metrics(adapted, writer, targets)
        if isinstance(writer, ChoosingWriter):
            training = adapted.training
            adapted.eval()
            found |= choice_report(writer, targets, seed=options.seed)
            adapted.train(training)
        return found

    trained = train_module(recipe, split, options, module, figures, console=console)
    module.close()
    adapter.merge(adapted).requires_grad_(False).eval()
    writer = build.writer()
    chosen = selected.report if selected else {}
    if options.fitted_on == "train":
        chosen = _choose_on_validation(recipe, split, writer, targets, options.seed, console)
    elif selected and isinstance(writer, GroundedWriter):
        writer.exponents = cast(GroundedWriter, selected.writer).exponents
    return FittedWriter(writer=writer, report={**chosen, **named.report}, **vars(trained))


def _choose_on_validation(
    recipe: Recipe, split: Split, writer: Writer, targets: Targets, seed: int, console: Console
) -> dict[str, Any]:
    """Choose what is chosen on validation, and measure what only a writer of this kind is measured by."""
    report: dict[str, Any] = {}
    if isinstance(writer, GroundedWriter):
        report |= choose_exponents(writer, targets, console=console)
    if isinstance(writer, TaskWriter) and recipe.tasks is not None:
        with console.status("figures of all task families on validation"):
            report["tasks"] = task_figures(writer, split, targets, recipe.tasks, seed=seed)
    if isinstance(writer, ChoosingWriter):
        report["choice"] = choice_report(writer, targets, seed=seed)
    return report


@dataclass(frozen=True)
class _Trie:
    """Names along their trie."""

    recipe: Recipe
    named: Named
    names: Names
    user_ids: Sequence[str]

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> TrainedModule:
        history, spelling = self.recipe.history, self.named.spelling
        if self.named.end is None:
            assert isinstance(spelling, CodeSpelling), "titles are of different lengths"
            users_U = np.array([spelling.user(user_id) for user_id in self.user_ids], np.int64)
            return EncodedModule(
                model, self.named.tokens, start=CODE_END, users_U=users_U, dropout=dropout,
                user_dropout=history.user_dropout if history.user_buckets else 0.0,
                children=self._children() if self._among_children else None,
            )  # fmt: skip
        options: dict[str, Any] = {"end": self.named.end, "dropout": dropout, "hidden_dropout": hidden_dropout}
        if self._among_children:
            return PathModule(model, self.named.tokens, children=self._children(), **options)
        return WritingModule(model, self.named.tokens, **options)

    def writer(self) -> Writer:
        tokens, end = self.named.tokens, self.named.end
        return writer_of(
            self.named.model,
            self.named.spelling,
            tokens,
            self._trie,
            self.names.popular_N,
            end=end,
            history_limit=self.recipe.history.limit,
            default=WriteSettings(self.recipe.writing.beams, int(np.diff(tokens.offsets).max()) + (end is not None)),
            tasks=self.named.tasks,
            renormalize=self._among_children,
        )

    @property
    def _among_children(self) -> bool:
        return self.recipe.writing.among == "children"

    def _children(self) -> ChildrenSoftmax:
        return ChildrenSoftmax(self._trie.arrays(), self.named.tokens, self.named.end)

    @cached_property
    def _trie(self) -> TokenTrie:
        tokens = self.named.tokens
        return TokenTrie.build([tokens[row].tolist() for row in range(len(tokens))], self.named.end)


@dataclass(frozen=True)
class _Tasks(_Trie):
    """Names along their trie, in answer to prompts."""

    split: Split
    fitted_on: FittedOn

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> WritingModule:
        tasks, spec = self.named.tasks, self.recipe.tasks
        assert tasks is not None and spec is not None and self.named.end is not None
        examples = TaskExamples(tasks.language, self.named.tokens, tasks.families, spec, self.split, self.fitted_on)
        return TaskModule(
            model, self.named.tokens, end=self.named.end, dropout=dropout, hidden_dropout=hidden_dropout,
            examples=examples, whole_words=tasks.whole_words,
        )  # fmt: skip


@dataclass(frozen=True)
class _Ground:
    """Titles written freely, and grounded in the base model's title space."""

    recipe: Recipe
    named: Named
    names: Names
    prompt: InstructionPrompt
    space: TitleSpace
    popularity_N: NDArray[np.int64]
    collaborative: Collaborative | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        named: Named,
        names: Names,
        popularity_N: NDArray[np.int64],
        folder: Path | None,
        collaborative: Path | None,
        console: Console,
    ) -> _Ground:
        tokenizer = cast(TitleSpelling, named.spelling).tokenizer
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        prompt = InstructionPrompt.of(tokenizer, recipe.history.instruction, named.end)
        longest = prompt.most_positions(recipe.history.limit, recipe.history.title_tokens)
        if longest > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={recipe.history.limit} with history.title_tokens={recipe.history.title_tokens} and "
                f"history.instruction takes up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        body, _ = load_backbone(recipe.backbone, folder=folder, download=True)
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(f"reading {len(named.tokens)} titles with the base model", total=len(named.tokens))
            space = TitleSpace.of_catalog(
                body, named.tokens, Pieces(tokenizer).wrap[0], progress=timed(bar, task, "reading titles")
            )
        model = None if collaborative is None else CollaborativeModel(collaborative, len(named.tokens))
        return cls(recipe, named, names, prompt, space, popularity_N, model)

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> WritingModule:
        return InstructedModule(
            model, self.named.tokens, prompt=self.prompt, dropout=dropout, hidden_dropout=hidden_dropout
        )

    def writer(self) -> Writer:
        longest = int(np.diff(self.named.tokens.offsets).max()) + self.prompt.answer_extra
        return GroundedWriter(
            self.named.model,
            self.names,
            prompt=self.prompt,
            space=self.space,
            popularity_N=self.popularity_N,
            collaborative=self.collaborative,
            history_limit=self.recipe.history.limit,
            default=WriteSettings(self.recipe.writing.beams, longest),
        )


@dataclass(frozen=True)
class _Choose:
    """One of some candidates."""

    recipe: Recipe
    named: Named
    names: Names
    prompt: ChoicePrompt
    slots: ItemSlots
    retriever: CollaborativeModel
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, named: Named, names: Names, collaborative: Path | None, seed: int) -> _Choose:
        if collaborative is None:
            raise RecipeError(
                f"recipe {recipe.name!r} takes candidates and item vectors from another model: give it with "
                "--set requires=sasrec --id-model DIR"
            )
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        words = cast(Any, named.model).get_input_embeddings()
        prompt = ChoicePrompt.of(
            cast(TitleSpelling, named.spelling).tokenizer, recipe.history.instruction, named.end,
            words.weight.shape[0], recipe.writing.slots,
        )  # fmt: skip
        given = (recipe.history.limit, recipe.writing.candidates, recipe.history.title_tokens)
        if (longest := prompt.most_positions(*given)) > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={given[0]} and writing.candidates={given[1]} with history.title_tokens={given[2]} take "
                f"up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        retriever = CollaborativeModel(collaborative, len(named.tokens))
        return cls(recipe, named, names, prompt, ItemSlots.beside(words, item_vectors(retriever)), retriever, seed)

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> WritingModule:
        return ChoosingModule(
            model,
            self.named.tokens,
            prompt=self.prompt,
            slots=self.slots,
            candidates=self.recipe.writing.candidates,
            seed=self.seed,
            match=self.recipe.writing.match,
            dropout=dropout,
            hidden_dropout=hidden_dropout,
        )

    def writer(self) -> Writer:
        return ChoosingWriter(
            self.named.model,
            self.names,
            prompt=self.prompt,
            slots=self.slots,
            retriever=self.retriever,
            candidates=self.recipe.writing.candidates,
            history_limit=self.recipe.history.limit,
            default=WriteSettings(self.recipe.writing.beams, int(np.diff(self.named.tokens.offsets).max()) + 1),
        )
