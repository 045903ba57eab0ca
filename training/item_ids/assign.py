"""Item identifiers for generative recipes: titles, semantic IDs made from the title vectors, or
identifiers made from the training part."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from safetensors import safe_open
from torch import nn

from modeling.artifact.tensor_files import save_arrays
from modeling.backbone.hidden_dropout import set_dropout
from modeling.backbone.loading import BackboneInfo, backbone_files, info_of, load_tokenizer, position_limit
from modeling.backbone.pretrained import read_config, read_model
from modeling.encoder.build import Sources, title_reader
from modeling.encoder.prompt import TitleTokens
from modeling.generation.item_tokenizer import CODE_END, CodeTokenizer, ItemTokenizer, TitleTokenizer
from training.data.cooccurrence import neighbour_vectors
from training.data.item_texts import item_texts
from training.data.splits import Split
from training.item_ids.identifiers import identifiers
from training.item_ids.residual_kmeans import CodeReport, report_codes, residual_kmeans, with_counter
from training.item_ids.rqvae import quantise
from training.loop.budget import timed
from training.recipe import CodesSpec, Recipe, RecipeError

CODES = "codes.safetensors"


@dataclass(frozen=True)
class AssignedIdentifiers:
    """A network that is to write the names of a catalog, not yet trained for it.

    Attributes:
        model: with its head; a Hugging Face model for causal language modelling, or an encoder-decoder one.
        spelling: what its tokens mean.
        tokens: of every item.
        end: the token that closes a name; None: nothing does, all have one length.
        report: figures about the names, for the manifest.
        info: of a language model that was pretrained.
    """

    model: nn.Module
    spelling: ItemTokenizer
    tokens: TitleTokens
    end: int | None
    report: dict[str, Any] = field(default_factory=dict)
    info: BackboneInfo | None = None


def name_by_titles(recipe: Recipe, split: Split, folder: Path | None) -> AssignedIdentifiers:
    """The titles of a catalog, and the language model that a recipe trains to write them.

    Args:
        recipe: with ``history.form='titles'``.
        split: whose catalog is named.
        folder: the backbone, where it was made here; None: ``recipe.backbone.source``.

    Raises:
        RecipeError: the backbone has no ``lm_head`` or no end token, or reads fewer positions than a history may take.
    """
    model, tokenizer, info = load_writer(recipe, folder)
    spelling, end = TitleTokenizer(tokenizer, recipe.history.title_tokens), cast(int, tokenizer.eos_token_id)
    try:
        return AssignedIdentifiers(model, spelling, spelling.spell(split.dataset.titles, end), end, info=info)
    except ValueError as error:
        raise RecipeError(f"recipe {recipe.name!r} cannot write the titles of {split.dataset.name}: {error}") from error


def load_writer(recipe: Recipe, folder: Path | None) -> tuple[nn.Module, Any, BackboneInfo]:
    """A causal language model with its head, its tokenizer, and what is known of it; raises `RecipeError`."""
    from transformers import AutoModelForCausalLM

    source = recipe.backbone.source
    files = backbone_files(source, folder, recipe.backbone.revision, download=True)
    config = read_config(files)
    if not any("LM" in name and "Masked" not in name for name in config.architectures or ()):
        raise RecipeError(
            f"recipe {recipe.name!r} writes with the backbone's lm_head, and {source!r} "
            f"({', '.join(config.architectures or ['unknown'])}) is no causal language model"
        )
    tokenizer = load_tokenizer(source, folder=files)
    if tokenizer.eos_token_id is None:
        raise RecipeError(f"the tokenizer of backbone {source!r} has no end token (eos_token), which closes a title")
    config.use_cache = False
    set_dropout(config, hidden=0.0, attention=recipe.backbone.dropout)
    model, sha256 = read_model(AutoModelForCausalLM, files, config, dtype=torch.float32)
    longest = (recipe.history.limit + 1) * (recipe.history.title_tokens + 1) + 1
    if longest > position_limit(model):
        raise RecipeError(
            f"history.limit={recipe.history.limit} with history.title_tokens={recipe.history.title_tokens} takes up to "
            f"{longest} positions, and backbone {source!r} reads {position_limit(model)}"
        )
    return model, tokenizer, info_of(recipe.backbone, model, config.get_text_config(), sha256, torch.float32)


@dataclass(frozen=True)
class CodedItems:
    """Items by their codes: what tokens mean, those of every item, and figures about them."""

    spelling: CodeTokenizer
    tokens: TitleTokens
    levels: int
    figures: dict[str, Any]


def name_by_codes(
    recipe: Recipe, spec: CodesSpec, split: Split, *, work: Path, seed: int, console: Console
) -> CodedItems:
    """The codes of a catalog's items.

    Args:
        recipe: with ``history.form='codes'``.
        spec: how codes are made.
        split: whose catalog is named, from its training part.
        work: of the run. Codes are kept there: made again after a kill they might differ by rounding, and a
            checkpoint would go on under names that mean other items.
        seed: of codes.
        console: for progress.

    Raises:
        RecipeError: the data has not what codes are made from.
    """
    codes_NL, figures = _kept_codes(recipe, spec, split, work, seed, console)
    if "unique" in figures:
        spelling, codes_NL = _semantic(spec, codes_NL, figures, recipe.history.user_buckets, console)
    else:
        spelling = CodeTokenizer((codes_NL.max(0) + 1).tolist(), recipe.history.user_buckets)
        console.print(
            f"{figures['kind']} identifiers: up to {figures['levels']} codes, {figures['mean_length']:.2f} on average; "
            f"{', '.join(map(str, spelling.sizes))} by level"
        )
    return CodedItems(spelling, spelling.spell(codes_NL), codes_NL.shape[1], figures)


def _kept_codes(
    recipe: Recipe, spec: CodesSpec, split: Split, work: Path, seed: int, console: Console
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Codes and figures about them: made once for a run, then read from its folder."""
    kept = work / CODES
    if not kept.exists():
        codes_NL, report = _any_codes(recipe, spec, split, seed, console)
        work.mkdir(parents=True, exist_ok=True)
        part = work / f"{CODES}.{os.getpid()}"  # under torchrun every process makes the same codes
        save_arrays({"codes": codes_NL}, part, metadata={"report": json.dumps(report)})
        part.replace(kept)
    with safe_open(kept, framework="numpy") as file:
        return file.get_tensor("codes"), json.loads(file.metadata()["report"])


def _any_codes(
    recipe: Recipe, spec: CodesSpec, split: Split, seed: int, console: Console
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Codes of items, without the counter of those that are made from vectors, and figures about them."""
    categories = split.dataset.categories
    kind = "categories" if spec.kind == "semantic" and any(categories) else spec.kind
    if kind in ("random", "sequential", "collaborative", "categories"):
        with console.status(f"{kind} identifiers"):
            return identifiers(kind, split.train_rows(), categories, spec, seed=seed)
    codes_NL, report = _make_codes(recipe, spec, split, seed, console)
    return codes_NL, asdict(report)


def _semantic(
    spec: CodesSpec, codes_NL: NDArray[np.int64], figures: dict[str, Any], user_buckets: int, console: Console
) -> tuple[CodeTokenizer, NDArray[np.int64]]:
    """Codes made from vectors, told apart by a counter."""
    used = ", ".join(f"{share:.0%}" for share in figures["utilisation"])
    console.print(
        f"semantic IDs: {figures['unique']:.1%} of the items have codes of their own, at most {figures['collisions']} "
        f"share them; codes in use by level {used}; error {figures['error']:.2f} of the variance"
    )
    named_NL = with_counter(codes_NL)
    sizes = [*[spec.size] * spec.levels, int(named_NL[:, -1].max()) + 1]
    return CodeTokenizer(sizes, user_buckets), named_NL


def _make_codes(
    recipe: Recipe, spec: CodesSpec, split: Split, seed: int, console: Console
) -> tuple[NDArray[np.int64], CodeReport]:
    titles = item_texts(split.dataset, recipe.items.text_template)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"reading {len(titles)} titles ({recipe.text_backbone})", total=len(titles))
        reader = title_reader(recipe.model_spec(), Sources(download=True))
        raw = reader(titles, progress=timed(bar, task, "reading titles"))
    vectors_ND = raw - raw.mean(0)
    if float(np.abs(vectors_ND).max()) < 1e-6:
        raise RecipeError(
            f"the backbone {recipe.text_backbone!r} reads all {len(titles)} titles as one vector, of which no codes "
            "can be made; take another items.text_source or method.codes.kind"
        )
    vectors_ND = _unit(vectors_ND)
    if share := spec.collaborative:
        near_ND = neighbour_vectors(split.train_rows(), len(titles), seed=seed)
        vectors_ND = _unit(np.concatenate([np.sqrt(1 - share) * vectors_ND, np.sqrt(share) * near_ND], axis=1))
    console.print(f"semantic IDs: {spec.kind}, {spec.levels} levels of {spec.size} codes for {len(titles)} items")
    with Progress(console=console, transient=True) as bar:
        if spec.kind == "rq-vae":
            task = bar.add_task("passes over the catalog", total=spec.epochs)
            codes_NL, rebuilt_ND = quantise(
                vectors_ND, spec, seed=seed, progress=timed(bar, task, "making codes of items")
            )
        else:
            bar.add_task("k-means, level by level", total=None)
            codes_NL, centroids_LKD = residual_kmeans(vectors_ND, levels=spec.levels, size=spec.size, seed=seed)
            rebuilt_ND = sum(centroids_LKD[level, codes] for level, codes in enumerate(codes_NL.T))
    return codes_NL, report_codes(codes_NL, spec.size, rebuilt_ND, vectors_ND)


def _unit(vectors_ND: NDArray[Any]) -> NDArray[np.float32]:
    lengths_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float32] = (vectors_ND / lengths_N1.clip(min=1e-6)).astype(np.float32)
    return unit_ND


def decoder(recipe: Recipe, vocabulary: int, positions: int, seed: int) -> nn.Module:
    """A small decoder over codes, from scratch."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    spec = recipe.backbone
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=spec.width, num_hidden_layers=spec.depth, num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads, head_dim=spec.head_size, intermediate_size=spec.inner_size,
        max_position_embeddings=positions, tie_word_embeddings=True, bos_token_id=CODE_END, eos_token_id=CODE_END,
        attention_dropout=spec.dropout, use_cache=False,
    )  # fmt: skip
    return cast(nn.Module, Qwen3ForCausalLM(config))


def encoder_decoder(recipe: Recipe, vocabulary: int, seed: int) -> nn.Module:
    """A small T5 over codes, from scratch."""
    from transformers import T5Config, T5ForConditionalGeneration

    spec = recipe.backbone
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary, d_model=spec.width, d_kv=spec.head_size, d_ff=spec.inner_size, num_layers=spec.depth,
        num_decoder_layers=spec.depth, num_heads=spec.heads, dropout_rate=spec.dropout, feed_forward_proj="relu",
        pad_token_id=CODE_END, eos_token_id=None, use_cache=False,
    )  # fmt: skip
    config.decoder_start_token_id = CODE_END
    return cast(nn.Module, T5ForConditionalGeneration(config))
