"""Trains a network to generate items along the trie of their tokens: titles, or semantic IDs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field
from rich.console import Console
from torch import nn

from index.trie import TokenTrie
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator
from modeling.generation.item_tokenizer import CODE_END, CodeTokenizer
from modeling.methods.base_generative import trie_of
from modeling.methods.trie import trie_generator
from training.data.splits import Split
from training.effects import Effect, code_effects
from training.item_ids.assign import AssignedIdentifiers, decoder, encoder_decoder, name_by_codes, name_by_titles
from training.loop.module import TrainedModule
from training.methods.base_generative import GenerativeTraining
from training.methods.encoder_decoder import EncoderDecoderModule
from training.methods.next_token import NextTokenModule, TrieSoftmaxModule
from training.objectives.trie_softmax import TrieSoftmax
from training.recipe import CodesSpec, Recipe, RecipeError, TokenSettings


class TrieSettings(TokenSettings):
    """Settings of generation along a trie; ``history.form`` decides between titles and semantic IDs."""

    kind: Literal["trie"] = "trie"
    among: Literal["vocabulary", "children"] = Field(
        "vocabulary", description="tokens of the softmax, in training and in search: the vocabulary, or those that the "
        "trie allows (children)",
    )  # fmt: skip
    codes: CodesSpec = CodesSpec()

    @classmethod
    def effects(cls) -> Mapping[str, Effect]:
        """Conditions under which the settings of codes and of kept states have an effect."""
        return {**super().effects(), **code_effects()}

    @property
    def codes_spec(self) -> CodesSpec:
        """Settings of the semantic IDs."""
        return self.codes

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` if histories have neither titles nor codes, or the backbone cannot generate them."""
        form = recipe.history.form
        if form not in ("titles", "codes"):
            raise ValueError(f"method 'trie' writes titles or codes: history.form={form!r} is neither")
        if form == "titles":
            self.check_titles(recipe)
        else:
            self.check_own_network(recipe)
        self.check_kept(recipe)


def name_items(
    recipe: Recipe, split: Split, *, folder: Path | None, work: Path, seed: int, console: Console
) -> AssignedIdentifiers:
    """The tokens of the catalog's items, and the network to train.

    Args:
        recipe: of this method.
        split: whose catalog is used.
        folder: the backbone, if it was made on this machine; None: ``recipe.backbone.source``.
        work: folder of the run; see `name_by_codes`.
        seed: of codes.
        console: for progress.

    Raises:
        RecipeError: see `name_by_titles` and `name_by_codes`; also if codes for an encoder-decoder differ in length.
    """
    spec = recipe.method.codes_spec
    if recipe.history.form != "codes" or spec is None:
        return name_by_titles(recipe, split, folder)
    coded = name_by_codes(recipe, spec, split, work=work, seed=seed, console=console)
    spelling, names, report = coded.spelling, coded.tokens, {"codes": coded.figures}
    if recipe.backbone.kind == "encoder-decoder":
        if len(set(np.diff(names.offsets).tolist())) > 1:
            raise RecipeError(
                "backbone.kind='encoder-decoder' writes identifiers of one length, and "
                f"method.codes.kind={spec.kind!r} gives several: take rq-vae or residual-kmeans"
            )
        return AssignedIdentifiers(encoder_decoder(recipe, spelling.vocabulary, seed), spelling, names, None, report)
    positions = (recipe.history.limit + 1) * (coded.levels + 1) + 1
    model = decoder(recipe, spelling.vocabulary, positions, seed)
    return AssignedIdentifiers(model, spelling, names, CODE_END, report)


class TrieTraining(GenerativeTraining[TrieSettings]):
    """Trains a `modeling.methods.trie.TrieGenerator`."""

    kind, Settings = "trie", TrieSettings

    def named_items(self, work: Path, seed: int) -> AssignedIdentifiers:
        """See `GenerativeTraining.named_items`: titles or codes."""
        return name_items(self.recipe, self.split, folder=self.job.backbone, work=work, seed=seed, console=self.console)

    def module(self, model: nn.Module, dropout: float, hidden_dropout: float) -> TrainedModule:
        """See `GenerativeTraining.module`: next-token loss over the vocabulary or over the trie's children; for an
        encoder-decoder, the loss of the next item."""
        history, spelling = self.recipe.history, self.named.spelling
        if self.named.end is None:
            assert isinstance(spelling, CodeTokenizer), "titles are of different lengths"
            user_ids = self.split.dataset.user_ids
            users_U = np.array([spelling.user(user_id) for user_id in user_ids], np.int64)
            return EncoderDecoderModule(
                model, self.named.tokens, start=CODE_END, users_U=users_U, dropout=dropout,
                user_dropout=history.user_dropout if history.user_buckets else 0.0,
                children=self._children() if self._among_children else None,
            )  # fmt: skip
        options: dict[str, Any] = {"end": self.named.end, "dropout": dropout, "hidden_dropout": hidden_dropout}
        found: NextTokenModule
        if self._among_children:
            found = TrieSoftmaxModule(model, self.named.tokens, children=self._children(), **options)
        else:
            found = NextTokenModule(model, self.named.tokens, **options)
        found.from_scratch = self.recipe.backbone.own
        return found

    def generator(self) -> ItemGenerator:
        """See `GenerativeTraining.generator`: constrained decoding along the trie."""
        tokens, end = self.named.tokens, self.named.end
        return trie_generator(
            self.named.model,
            self.named.spelling,
            tokens,
            self._trie,
            self.names.popular_N,
            end=end,
            history_limit=self.recipe.history.limit,
            default=GenerationSettings(self.settings.beams, int(np.diff(tokens.offsets).max()) + (end is not None)),
            renormalize=self._among_children,
        )

    @property
    def _among_children(self) -> bool:
        return self.settings.among == "children"

    def _children(self) -> TrieSoftmax:
        return TrieSoftmax(self._trie.arrays(), self.named.tokens, self.named.end)

    @cached_property
    def _trie(self) -> TokenTrie:
        return trie_of(self.named.tokens, self.named.end)


METHOD = TrieTraining
