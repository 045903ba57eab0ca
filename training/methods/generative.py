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
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import TextTokenizer, load_backbone, position_limit
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator, ItemIdentifiers
from modeling.generation.item_tokenizer import CODE_END, CodeTokenizer, TitleTokenizer
from modeling.methods.bigrec import BigRecGenerator, Collaborative
from modeling.methods.bigrec_files import CollaborativeModel
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.methods.bigrec_title_space import TitleSpace
from modeling.methods.generative import trie_generator
from modeling.methods.llara import ChoicePrompt, ItemVectorProjector, LlaraGenerator, item_vectors
from modeling.methods.p5 import P5Generator
from training.data.splits import FittedOn, Split, Targets
from training.item_ids.assign import AssignedIdentifiers, name_items
from training.loop.budget import timed
from training.loop.fit import FitOptions, Trained, sample_targets, train_module
from training.loop.module import TrainedModule
from training.loop.trainer import last_complete_checkpoint
from training.methods.bigrec_exponents import choose_exponents
from training.methods.encoder_decoder import EncoderDecoderModule
from training.methods.llara import LlaraModule, choice_report
from training.methods.llara_copy_task import teach_copying
from training.methods.next_token import InstructionModule, NextTokenModule, TrieSoftmaxModule, written_metrics
from training.methods.p5 import P5Module
from training.methods.p5_evaluation import task_figures
from training.methods.p5_examples import TaskExamples
from training.objectives.trie_softmax import TrieSoftmax
from training.recipes.base import Recipe, RecipeError


@dataclass(frozen=True)
class FittedGenerator(Trained):
    """A trained writer and how it came about; ``report`` has figures about the names it writes and the weights it
    uses."""

    writer: ItemGenerator
    report: dict[str, Any]


def fit_generative(
    recipe: Recipe,
    split: Split,
    options: FitOptions,
    *,
    folder: Path | None,
    collaborative: Path | None = None,
    selected: FittedGenerator | None = None,
    console: Console,
) -> FittedGenerator:
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
    names = ItemIdentifiers(named.tokens, np.argsort(-popularity_N, kind="stable"), named.spelling)
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
    adapter = adapter_of(recipe.adapter.kind)
    adapted = named.model.requires_grad_(True) if trained_whole else adapter.attach(named.model, recipe.adapter)
    module = build.module(adapted, recipe.history.dropout, recipe.backbone.dropout if recipe.backbone.own else 0.0)
    if isinstance(module, NextTokenModule):
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
        if isinstance(writer, LlaraGenerator):
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
    elif selected and isinstance(writer, BigRecGenerator):
        writer.exponents = cast(BigRecGenerator, selected.writer).exponents
    return FittedGenerator(writer=writer, report={**chosen, **named.report}, **vars(trained))


def _choose_on_validation(
    recipe: Recipe, split: Split, writer: ItemGenerator, targets: Targets, seed: int, console: Console
) -> dict[str, Any]:
    """Choose what is chosen on validation, and measure what only a writer of this kind is measured by."""
    report: dict[str, Any] = {}
    if isinstance(writer, BigRecGenerator):
        report |= choose_exponents(writer, targets, console=console)
    if isinstance(writer, P5Generator) and recipe.tasks is not None:
        with console.status("figures of all task families on validation"):
            report["tasks"] = task_figures(writer, split, targets, recipe.tasks, seed=seed)
    if isinstance(writer, LlaraGenerator):
        report["choice"] = choice_report(writer, targets, seed=seed)
    return report


@dataclass(frozen=True)
class _Trie:
    """Names along their trie."""

    recipe: Recipe
    named: AssignedIdentifiers
    names: ItemIdentifiers
    user_ids: Sequence[str]

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> TrainedModule:
        history, spelling = self.recipe.history, self.named.spelling
        if self.named.end is None:
            assert isinstance(spelling, CodeTokenizer), "titles are of different lengths"
            users_U = np.array([spelling.user(user_id) for user_id in self.user_ids], np.int64)
            return EncoderDecoderModule(
                model, self.named.tokens, start=CODE_END, users_U=users_U, dropout=dropout,
                user_dropout=history.user_dropout if history.user_buckets else 0.0,
                children=self._children() if self._among_children else None,
            )  # fmt: skip
        options: dict[str, Any] = {"end": self.named.end, "dropout": dropout, "hidden_dropout": hidden_dropout}
        if self._among_children:
            return TrieSoftmaxModule(model, self.named.tokens, children=self._children(), **options)
        return NextTokenModule(model, self.named.tokens, **options)

    def writer(self) -> ItemGenerator:
        tokens, end = self.named.tokens, self.named.end
        return trie_generator(
            self.named.model,
            self.named.spelling,
            tokens,
            self._trie,
            self.names.popular_N,
            end=end,
            history_limit=self.recipe.history.limit,
            default=GenerationSettings(
                self.recipe.writing.beams, int(np.diff(tokens.offsets).max()) + (end is not None)
            ),
            tasks=self.named.tasks,
            renormalize=self._among_children,
        )

    @property
    def _among_children(self) -> bool:
        return self.recipe.writing.among == "children"

    def _children(self) -> TrieSoftmax:
        return TrieSoftmax(self._trie.arrays(), self.named.tokens, self.named.end)

    @cached_property
    def _trie(self) -> TokenTrie:
        tokens = self.named.tokens
        return TokenTrie.build([tokens[row].tolist() for row in range(len(tokens))], self.named.end)


@dataclass(frozen=True)
class _Tasks(_Trie):
    """Names along their trie, in answer to prompts."""

    split: Split
    fitted_on: FittedOn

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        tasks, spec = self.named.tasks, self.recipe.tasks
        assert tasks is not None and spec is not None and self.named.end is not None
        examples = TaskExamples(tasks.language, self.named.tokens, tasks.families, spec, self.split, self.fitted_on)
        return P5Module(
            model, self.named.tokens, end=self.named.end, dropout=dropout, hidden_dropout=hidden_dropout,
            examples=examples, whole_words=tasks.whole_words,
        )  # fmt: skip


@dataclass(frozen=True)
class _Ground:
    """Titles written freely, and grounded in the base model's title space."""

    recipe: Recipe
    named: AssignedIdentifiers
    names: ItemIdentifiers
    prompt: InstructionPrompt
    space: TitleSpace
    popularity_N: NDArray[np.int64]
    collaborative: Collaborative | None

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        named: AssignedIdentifiers,
        names: ItemIdentifiers,
        popularity_N: NDArray[np.int64],
        folder: Path | None,
        collaborative: Path | None,
        console: Console,
    ) -> _Ground:
        tokenizer = cast(TitleTokenizer, named.spelling).tokenizer
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
                body, named.tokens, TextTokenizer(tokenizer).wrap[0], progress=timed(bar, task, "reading titles")
            )
        model = None if collaborative is None else CollaborativeModel(collaborative, len(named.tokens))
        return cls(recipe, named, names, prompt, space, popularity_N, model)

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        return InstructionModule(
            model, self.named.tokens, prompt=self.prompt, dropout=dropout, hidden_dropout=hidden_dropout
        )

    def writer(self) -> ItemGenerator:
        longest = int(np.diff(self.named.tokens.offsets).max()) + self.prompt.answer_extra
        return BigRecGenerator(
            self.named.model,
            self.names,
            prompt=self.prompt,
            space=self.space,
            popularity_N=self.popularity_N,
            collaborative=self.collaborative,
            history_limit=self.recipe.history.limit,
            default=GenerationSettings(self.recipe.writing.beams, longest),
        )


@dataclass(frozen=True)
class _Choose:
    """One of some candidates."""

    recipe: Recipe
    named: AssignedIdentifiers
    names: ItemIdentifiers
    prompt: ChoicePrompt
    slots: ItemVectorProjector
    retriever: CollaborativeModel
    seed: int

    @classmethod
    def of(
        cls, recipe: Recipe, named: AssignedIdentifiers, names: ItemIdentifiers, collaborative: Path | None, seed: int
    ) -> _Choose:
        if collaborative is None:
            raise RecipeError(
                f"recipe {recipe.name!r} takes candidates and item vectors from another model: give it with "
                "--set requires=sasrec --id-model DIR"
            )
        assert named.end is not None, "titles are closed by the tokenizer's end token"
        words = cast(Any, named.model).get_input_embeddings()
        prompt = ChoicePrompt.of(
            cast(TitleTokenizer, named.spelling).tokenizer, recipe.history.instruction, named.end,
            words.weight.shape[0], recipe.writing.slots,
        )  # fmt: skip
        given = (recipe.history.limit, recipe.writing.candidates, recipe.history.title_tokens)
        if (longest := prompt.most_positions(*given)) > (limit := position_limit(named.model)):
            raise RecipeError(
                f"history.limit={given[0]} and writing.candidates={given[1]} with history.title_tokens={given[2]} take "
                f"up to {longest} positions, and {recipe.backbone.source!r} reads {limit}"
            )
        retriever = CollaborativeModel(collaborative, len(named.tokens))
        return cls(
            recipe, named, names, prompt, ItemVectorProjector.beside(words, item_vectors(retriever)), retriever, seed
        )

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> NextTokenModule:
        return LlaraModule(
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

    def writer(self) -> ItemGenerator:
        return LlaraGenerator(
            self.named.model,
            self.names,
            prompt=self.prompt,
            slots=self.slots,
            retriever=self.retriever,
            candidates=self.recipe.writing.candidates,
            history_limit=self.recipe.history.limit,
            default=GenerationSettings(self.recipe.writing.beams, int(np.diff(self.named.tokens.offsets).max()) + 1),
        )
