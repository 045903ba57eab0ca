"""Puts a model together from its description: fresh for training, or around the weights of an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modeling.artifact.verified import Files, Folder
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import (
    BackboneError,
    BackboneInfo,
    TextTokenizer,
    load_backbone,
    load_text_model,
    load_tokenizer,
    no_backbone,
    position_limit,
)
from modeling.encoder.item_tower import ItemTower, Whitening
from modeling.encoder.pooling import POOLINGS, Pooling, pooling_of
from modeling.encoder.projector import ItemMap
from modeling.encoder.prompt import FreeItem, PromptBuilder, TitleTokens
from modeling.encoder.summary_tokens import Purpose, summary_words
from modeling.encoder.title_check import sample_rows
from modeling.encoder.title_reader import TitleReader, read_or_reuse
from modeling.encoder.user_encoder import UserEncoder
from modeling.spec import ModelSpec, PoolingSpec
from modeling.text_template import TITLE_ALONE

LONGEST_PROMPT = 2048
SEPARATOR = ";"
"""Stands behind every title of a history that is text alone."""


@dataclass(frozen=True)
class Sources:
    """Folders that stand in for the names in a ``ModelSpec`` (an artifact's own copies, a backbone made here).

    ``backbone_reads_titles``: ``backbone`` is as it was when it read the titles, neither tuned nor cut since.
    ``vectors``: folder where the vectors of a catalog's titles are kept for the next run; None: they are not kept.
    """

    backbone: Folder | None = None
    text_backbone: Folder | None = None
    tokenizer: Folder | None = None
    backbone_reads_titles: bool = True
    vectors: Path | None = None
    download: bool = False
    """Whether a hub may be asked for what a name stands for and is not on this machine."""


@dataclass(frozen=True)
class TextVectors:
    """Whitened title vectors of the catalog [N, C] and the map that whitens a new title the same way.

    ``samples``: some of the texts that were read, by row, where these are not the titles.
    """

    vectors_NC: NDArray[np.float32]
    whitening: Whitening
    samples: Mapping[int, str] = field(default_factory=dict)


@dataclass
class Model:
    """A user encoder with what an artifact has to keep beside its weights."""

    spec: ModelSpec
    encoder: UserEncoder
    backbone_info: BackboneInfo
    sources: Sources
    text: TextVectors | None = None
    titles: TitleTokens | None = None
    tokenizer_sha256: str | None = None
    instruction_tokens: list[int] = field(default_factory=list)


def read_titles(
    spec: ModelSpec,
    titles: Sequence[str],
    sources: Sources,
    *,
    whitening: Whitening | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> TextVectors | None:
    """The text tower's offline pass over the catalog's titles, or over the texts that ``items.text_template`` makes of
    it; None for a model that uses no title vectors. ``whitening``: fitted earlier; None: fitted on these titles."""
    if not spec.needs_text_vectors:
        return None
    raw = read_or_reuse(title_reader(spec, sources), titles, sources.vectors, progress=progress)
    whitening = whitening or Whitening.fit(raw, spec.items.text_dim)
    samples = {} if spec.items.text_template == TITLE_ALONE else {row: titles[row] for row in sample_rows(titles)}
    return TextVectors(whitening(raw), whitening, samples)


def title_reader(spec: ModelSpec, sources: Sources, tokenizer: TextTokenizer | None = None) -> TitleReader:
    """The text backbone of a model, ready to read titles.

    Args:
        spec: of the model.
        sources: folders to load from instead of the names in ``spec``.
        tokenizer: of the language model, taken where that is the text backbone too; None: read.

    Raises:
        BackboneError: it is not found, has fewer layers than are asked for, reads fewer tokens, or has not the token
            that is pooled.
    """
    source = spec.text_backbone
    own = spec.items.text_source is None and sources.backbone_reads_titles
    folder = sources.text_backbone or (sources.backbone if own else None)
    revision = spec.backbone.revision if spec.items.text_source is None else None  # another model has its own
    same = own and sources.text_backbone is None and sources.tokenizer is None
    pieces = tokenizer if same else None
    if pieces is None:
        pieces = TextTokenizer(load_tokenizer(source, folder=folder, revision=revision, download=sources.download))
    model, info = load_text_model(
        source, folder=folder, revision=revision, layers=spec.items.text_layer, download=sources.download
    )
    pooling = pooling_of(PoolingSpec(kind=spec.items.text_pooling))
    wrap, limit = _around_title(pieces, pooling, source), spec.items.text_tokens
    if limit > (most := position_limit(model) - len(wrap[0]) - len(wrap[1])):
        raise BackboneError(f"items.text_tokens={limit}, but {source!r} reads at most {most} tokens of a text")
    return TitleReader(model, pieces, wrap=wrap, limit=limit, pooling=pooling, weights_sha256=info.sha256)


def _around_title(pieces: TextTokenizer, pooling: Pooling, source: str) -> tuple[list[int], list[int]]:
    """Special tokens before and after a title: those of every text, and one that is pooled; raises BackboneError."""
    before = pieces.ends[0] if pooling.needs_begin else pieces.wrap[0]
    after = pieces.ends[1] if pooling.needs_end else pieces.wrap[1]
    if (pooling.needs_begin and not before) or (pooling.needs_end and not after):
        raise BackboneError(
            f"items.text_pooling={pooling.spec.kind!r} reads a special token, and the tokenizer of {source!r} has none"
        )
    return before, after


def build_model(
    spec: ModelSpec,
    *,
    catalog_size: int,
    titles: Sequence[str] | None = None,
    text: TextVectors | None = None,
    title_tokens: TitleTokens | None = None,
    sources: Sources | None = None,
    adapter_folder: Files | None = None,
    merge: bool = True,
    dtype: torch.dtype = torch.float32,
    empty_items: bool = False,
) -> Model:
    """A user encoder for ``catalog_size`` items.

    Args:
        spec: its description.
        catalog_size: N.
        titles: of the catalog, in row order; read once here where the model needs their tokens or vectors.
        text: title vectors made earlier (else made from ``titles``).
        title_tokens: title tokens made earlier (else made from ``titles``).
        sources: folders to load from instead of the names in ``spec``.
        adapter_folder: the files of a saved adapter to load; None attaches a fresh one, to be trained.
        merge: fold a saved adapter into the weights; else it is trained on.
        dtype: of the backbone's weights.
        empty_items: make the item tower without memory for its tensors (on PyTorch's device ``meta``); the caller gives
            it all of them, the title vectors too.
    """
    sources = sources or Sources()
    if text is None and titles is not None:
        text = read_titles(spec, titles, sources)
    if spec.has_network:
        backbone, info = load_backbone(spec.backbone, folder=sources.backbone, dtype=dtype, download=sources.download)
    else:
        backbone, info = no_backbone()
    pieces = _tokenizer(spec, sources)
    if spec.history.reads_tokens and title_tokens is None:
        assert pieces is not None and titles is not None, "titles or their tokens are needed"
        title_tokens = TitleTokens.of_titles(titles, pieces, spec.history.title_tokens)
    prompts = _prompts(spec, pieces, title_tokens, catalog_size, backbone)
    with torch.device("meta") if empty_items else nullcontext():
        items = _item_tower(spec, catalog_size, text, info)
    if text is not None and not empty_items:
        items.set_text(text.vectors_NC)
    if spec.items.words and titles is not None:
        assert pieces is not None
        items.start_words(cast(Any, backbone).get_input_embeddings(), pieces(titles))
    encoder = UserEncoder(
        spec,
        backbone=backbone,
        items=items,
        prompts=prompts,
        hidden_size=info.hidden_size,
        read_titles=_free_text(spec, sources, text, pieces),
        item_prompts=_item_prompts(prompts, spec, pieces),
    )
    encoder.backbone = _adapted(backbone, spec, adapter_folder, merge)
    sha256 = pieces.sha256 if pieces else None
    return Model(spec, encoder, info, sources, text, title_tokens, sha256, instruction_tokens=prompts.prefix.tolist())


def _tokenizer(spec: ModelSpec, sources: Sources) -> TextTokenizer | None:
    """Tokenizer of the backbone; None for a backbone of our own, which reads no text."""
    if spec.backbone.own:
        return None
    place = sources.tokenizer or sources.backbone
    revision, download = spec.backbone.revision, sources.download
    return TextTokenizer(load_tokenizer(spec.backbone.source, folder=place, revision=revision, download=download))


def _prompts(
    spec: ModelSpec, pieces: TextTokenizer | None, titles: TitleTokens | None, catalog_size: int, backbone: nn.Module
) -> PromptBuilder:
    """Builder of the prompts of histories; raises BackboneError where a pooled token is missing."""
    return PromptBuilder(
        form=spec.history.form,
        vectors_per_item=spec.history.vectors_per_item,
        with_ids=spec.history.ids,
        catalog_size=catalog_size,
        prefix=_prefix(spec, pieces),
        titles=titles,
        separator=_separator(spec, pieces),
        suffix=_suffix(spec, pieces),
        item_limit=spec.history.limit,
        position_limit=min(LONGEST_PROMPT, position_limit(backbone)),
    )


def _item_tower(spec: ModelSpec, catalog_size: int, text: TextVectors | None, info: BackboneInfo) -> ItemTower:
    """Item tower of the catalog, without its title vectors."""
    return ItemTower(
        spec.items,
        catalog_size=catalog_size,
        text_dim=text.vectors_NC.shape[1] if text else 0,
        hidden_size=info.hidden_size,
        identity=spec.projector.kind == "identity",
        shows_ids=spec.history.shows_ids,
        item_map=_item_map(spec, info.hidden_size),
    )


def _item_map(spec: ModelSpec, hidden_size: int) -> ItemMap | None:
    """To where items are compared; None where the user's state is mapped to them."""
    side = spec.projector.side
    return None if side == "user" else ItemMap(spec.projector, dim=spec.items.dim, hidden_size=hidden_size)


def _adapted(backbone: nn.Module, spec: ModelSpec, folder: Files | None, merge: bool) -> nn.Module:
    if spec.backbone.own:
        return backbone
    adapter = adapter_of(spec.adapter.kind)
    if folder is None or not adapter.has_weights:
        return adapter.attach(backbone, spec.adapter)
    loaded = adapter.load(backbone, folder, spec.adapter)
    return adapter.merge(loaded) if merge and adapter.merges else loaded


def _item_prompts(prompts: PromptBuilder, spec: ModelSpec, pieces: TextTokenizer | None) -> PromptBuilder | None:
    """Prompts of single items, without the instruction; None where items are not encoded as histories are."""
    if pieces is None or spec.items.tower != "encoder":
        return None
    history = spec.history.model_copy(update={"instruction": ""})
    prefix = _prefix(spec.model_copy(update={"history": history}), pieces)
    return prompts.of_items(prefix, _suffix(spec, pieces, of_items=True))


def _prefix(spec: ModelSpec, pieces: TextTokenizer | None) -> list[int]:
    """Beginning-of-sequence token and instruction; nothing where the model reads vectors and has no instruction, unless
    the first token is pooled.

    Raises:
        BackboneError: the pooling reads a first token, and the tokenizer has none.
    """
    if pieces is None:
        return []
    text, first = spec.history.instruction, POOLINGS[spec.pooling.kind].needs_begin
    if spec.history.form == "compressed" and not text and not first:
        return []
    begin = pieces.ends[0] if first else pieces.wrap[0]
    if first and not begin:
        raise BackboneError(
            f"pooling.kind={spec.pooling.kind!r} reads the first token, and the tokenizer of {spec.backbone.source!r} "
            "puts none before a text"
        )
    return begin + (pieces.fixed([text])[0] if text else [])


def _separator(spec: ModelSpec, pieces: TextTokenizer | None) -> list[int]:
    """Tokens behind every title of a history of titles alone."""
    return pieces.fixed([SEPARATOR])[0] if pieces is not None and spec.history.form == "text" else []


def _suffix(spec: ModelSpec, pieces: TextTokenizer | None, *, of_items: bool = False) -> list[int]:
    """Tokens behind a history, or behind an item's title: the closing text and the tokens whose states are pooled; else
    what closes a text for this tokenizer, where the history is one.

    Raises:
        BackboneError: the pooling reads tokens that the tokenizer has not.
    """
    if pieces is None:
        return []
    pooling = POOLINGS[spec.pooling.kind]
    if not (pooling.needs_end or pooling.needs_summary):
        whole = spec.history.form == "text" and spec.backbone.attention == "bidirectional"
        return pieces.wrap[1] if whole else []
    text = spec.items.closing if of_items else spec.history.closing
    closing = pieces.fixed([text])[0] if text else []
    if pooling.needs_summary:
        return closing + summary_tokens(spec, pieces, "own" if of_items else "next")
    if not (found := pieces.ends[1]):
        raise BackboneError(
            f"pooling.kind={spec.pooling.kind!r} reads an end token, and the tokenizer of {spec.backbone.source!r} has "
            "none"
        )
    return closing + found


def summary_tokens(spec: ModelSpec, pieces: TextTokenizer, purpose: Purpose) -> list[int]:
    """Ids of the tokens that sum a text up, ``pooling.count`` of them.

    Raises:
        BackboneError: the vocabulary was not extended by them.
    """
    found = pieces.fixed(summary_words(purpose, spec.pooling.count))
    if any(len(ids) != 1 for ids in found):
        raise BackboneError(
            f"pooling.kind='end_n' reads {spec.pooling.count} tokens that sum a text up, and the tokenizer of "
            f"{spec.backbone.source!r} has not been extended by them: method.adaptation does that in training"
        )
    return [ids[0] for ids in found]


def _free_text(
    spec: ModelSpec, sources: Sources, text: TextVectors | None, pieces: TextTokenizer | None
) -> Callable[[Sequence[str]], list[FreeItem]] | None:
    """A function from free titles to items of a history; it loads the text backbone at the first call. None for ids."""
    if spec.history.form == "ids":
        return None
    if spec.history.reads_tokens:
        assert pieces is not None
        limit = spec.history.title_tokens

        def tokens(titles: Sequence[str]) -> list[FreeItem]:
            ids = pieces(titles)
            return [
                FreeItem(title, tokens=np.asarray(piece[:limit], np.int32))
                for title, piece in zip(titles, ids, strict=True)
            ]

        return tokens
    assert text is not None
    return TitleVectors(lambda: title_reader(spec, sources, pieces), text.whitening)


class TitleVectors:
    """Reads free titles into whitened vectors; the text backbone is loaded at the first one."""

    def __init__(self, load: Callable[[], TitleReader], whitening: Whitening) -> None:
        self._load = load
        self._whitening = whitening
        self._reader: TitleReader | None = None

    def __call__(self, titles: Sequence[str]) -> list[FreeItem]:
        """Items of ``titles``, in their order."""
        if self._reader is None:
            self._reader = self._load()
        read = self._whitening(self._reader(titles))
        return [FreeItem(title, text_vector=vector) for title, vector in zip(titles, read, strict=True)]

    @property
    def model(self) -> nn.Module | None:
        """The text backbone, once it has been loaded."""
        return None if self._reader is None else self._reader.model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters a recipe trains, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Weights on the CPU, contiguous, ready for safetensors."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in cast(Any, module).state_dict().items()}
