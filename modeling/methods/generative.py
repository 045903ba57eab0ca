"""The generative artifact: a language model with its head, causal or with an encoder, and the names of the catalog's
items.

``backbone/`` (model and tokenizer in Hugging Face's own format), ``catalog.parquet``, ``item_tokens.safetensors``,
``golden.json``, ``manifest.json``. Nothing is pickled; every file is hashed. The trie is built from the tokens when the
artifact is opened (a second for ten thousand titles), by the caller, who knows `index`.

Where titles are written freely and then grounded, ``grounding/`` (the base model's body), ``title_space.safetensors``
(its vectors of all titles, and how often each item was chosen) and perhaps ``parts/collaborative`` (a dense artifact)
stand beside them, and no trie is built. Where one of some candidates is written, ``item_slots.safetensors`` (from item
vectors to inputs of the model) and ``parts/collaborative`` do. Where histories are put as prompts
(`modeling/methods/p5.py`), ``tasks/`` holds the tokenizer of their words and the vectors of whole words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from numpy.typing import NDArray
from torch import nn

from modeling.artifact.manifest import (
    MANIFEST,
    SCHEMA,
    ArtifactError,
    GenerativeManifest,
    WrittenCase,
    golden_of,
    on_device,
    open_files,
    refusing,
    seal,
)
from modeling.artifact.sizes import check_sizes
from modeling.artifact.sources import neutral_recipe
from modeling.artifact.tensor_files import save_arrays, save_pretrained
from modeling.artifact.verified import Files, Folder
from modeling.backbone.loading import TextTokenizer, load_tokenizer
from modeling.backbone.pretrained import read_config, read_model
from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemGenerator, ItemIdentifiers
from modeling.generation.beam_search import Paths
from modeling.generation.item_tokenizer import CodeTokenizer, ItemTokenizer, TitleTokenizer
from modeling.inference.int8_linear import Precision, dtype_of, quantise
from modeling.inference.prepacked_linear import prepack
from modeling.methods.bigrec import BigRecGenerator
from modeling.methods.bigrec_files import read_grounded, write_grounding
from modeling.methods.dense import write_golden
from modeling.methods.llara import LlaraGenerator, read_choosing, write_choosing
from modeling.methods.p5 import P5Generator
from modeling.methods.p5_files import Tasks, read_tasks, write_tasks
from modeling.methods.trie import EncoderDecoderGenerator, TrieGenerator

ITEM_TOKENS = "item_tokens.safetensors"


@dataclass(frozen=True)
class GenerativeArtifact:
    """A loaded artifact; its catalog is opened by ``index`` from the same folder."""

    folder: Path
    manifest: GenerativeManifest
    model: ItemGenerator
    golden: list[WrittenCase]
    precision: Precision = "fp32"
    """What its language models compute in."""


class Trie(Protocol):
    """The trie of the names, as `index.trie.TokenTrie` is one."""

    def arrays(self) -> Paths:
        """What a search walks along."""
        ...

    def items(self, state: int) -> list[int]:
        """The rows whose sequence ends in a state."""
        ...


BuildTrie = Callable[[Sequence[Sequence[int]], int | None], Trie]
"""From the tokens of every row and the end token, where there is one."""


def trie_generator(
    model: nn.Module,
    spelling: ItemTokenizer,
    tokens: TitleTokens,
    trie: Trie,
    popular_N: NDArray[Any],
    *,
    end: int | None,
    history_limit: int,
    default: GenerationSettings,
    tasks: Tasks | None = None,
    renormalize: bool = False,
) -> TrieGenerator:
    """A writer along the trie of a catalog's names, which is put prompts where there are ``tasks``; of items with one
    name the more popular is first. ``renormalize``: see `TrieGenerator`."""
    names = ItemIdentifiers(tokens, popular_N, spelling)
    place_N = names.place_N

    def items(state: int) -> list[int]:
        return sorted(trie.items(state), key=lambda row: int(place_N[row]))

    options: dict[str, Any] = {
        "paths": trie.arrays(), "items": items, "end": end, "history_limit": history_limit, "default": default,
    }  # fmt: skip
    if tasks is not None:
        return P5Generator(model, names, **options, **vars(tasks))
    kind = EncoderDecoderGenerator if cast(Any, model).config.is_encoder_decoder else TrieGenerator
    return kind(model, names, renormalize=renormalize, **options)


def write_generative(
    folder: Path,
    writer: ItemGenerator,
    golden: Sequence[WrittenCase],
    *,
    instruction: str = "",
    collaborative: Path | None = None,
    **facts: Any,
) -> GenerativeManifest:
    """Write everything but the catalog, which the caller has written, and seal the folder.

    Args:
        folder: to write to.
        writer: along a trie, or grounding what it wrote.
        golden: histories and their answers.
        instruction: of a grounded writer's prompt.
        collaborative: the dense artifact whose scores a grounded writer weighs by, which is copied.
        facts: the manifest's fields that the model does not know.
    """
    model = cast(Any, writer.model)
    save_pretrained(model, folder / "backbone")
    spelling, tokens = writer.names.spelling, writer.names.tokens
    if isinstance(spelling, TitleTokenizer):
        spelling.tokenizer.save_pretrained(str(folder / "backbone"))
    save_arrays({"offsets": tokens.offsets, "tokens": tokens.tokens}, folder / ITEM_TOKENS)
    grounding = None
    if isinstance(writer, BigRecGenerator):
        grounding = write_grounding(folder, writer, instruction, collaborative)
    tasks = write_tasks(folder, writer) if isinstance(writer, P5Generator) else None
    choice = None
    if isinstance(writer, LlaraGenerator):
        assert collaborative is not None
        choice = write_choosing(folder, writer, instruction, collaborative)
    write_golden(folder, golden)
    facts["recipe_data"] = neutral_recipe(facts["recipe_data"])
    manifest = GenerativeManifest(
        schema_version=SCHEMA,
        kind="generative",
        version="",
        architecture=type(model).__name__,
        names="titles" if isinstance(spelling, TitleTokenizer) else "codes",
        tokenizer_sha256=TextTokenizer(spelling.tokenizer).sha256 if isinstance(spelling, TitleTokenizer) else None,
        end=writer.end,
        history_limit=writer.history_limit,
        title_limit=spelling.limit if isinstance(spelling, TitleTokenizer) else None,
        code_sizes=spelling.sizes if isinstance(spelling, CodeTokenizer) else (),
        user_buckets=spelling.user_buckets if isinstance(spelling, CodeTokenizer) else 0,
        beams=cast(int, writer.default.beams),
        max_new_tokens=cast(int, writer.default.max_new_tokens),
        renormalize=isinstance(writer, TrieGenerator) and writer.renormalize,
        catalog_size=len(tokens),
        grounding=grounding,
        tasks=tasks,
        choice=choice,
        files={},
        **facts,
    )
    return seal(folder, manifest)


def load_generative(
    folder: Folder | str,
    build_trie: BuildTrie,
    popular_N: NDArray[Any],
    *,
    device: str = "cpu",
    precision: Precision = "fp32",
    verify: bool = True,
) -> GenerativeArtifact:
    """Rebuild a writer from its folder, in evaluation mode.

    Args:
        folder: ``artifacts/<name>``.
        build_trie: makes the trie of the names.
        popular_N: all rows of the catalog, most popular first.
        device: where the model runs.
        precision: of language models, the one that grounds included; a network that writes codes is small and stays in
            fp32, as does a collaborative model. In eight bits the head keeps its own.
        verify: check every file's hash.

    Raises:
        ArtifactError: anything is missing, altered, of another kind, width or schema version.
        PrecisionError: the precision cannot be computed here.
    """
    folder = Path(folder) if isinstance(folder, str) else folder
    with refusing(folder.name):
        files, manifest = open_files(folder, verify=verify)
        if not isinstance(manifest, GenerativeManifest):
            raise ArtifactError(
                f"artifact {files.name} is dense ({manifest.recipe}), and a generative one is needed here"
            )
        artifact = _read(files, manifest, build_trie, popular_N, device, precision)
        if verify:
            files.verify_rest()
    return artifact


def _read(
    files: Files,
    manifest: GenerativeManifest,
    build_trie: BuildTrie,
    popular_N: NDArray[Any],
    device: str,
    precision: Precision,
) -> GenerativeArtifact:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    if len(popular_N) != manifest.catalog_size:
        raise ArtifactError(
            f"catalog.parquet of {files.name} holds {len(popular_N)} items, and {MANIFEST} expects "
            f"{manifest.catalog_size}"
        )
    check_sizes(files, manifest)
    if manifest.names == "codes":
        precision = "fp32"
    golden = [WrittenCase.model_validate(case) for case in golden_of(files)]
    arrays = files.arrays(ITEM_TOKENS)
    tokens = TitleTokens(arrays["offsets"], arrays["tokens"])
    spelling = _spelling(files, manifest)
    body = files.below("backbone")
    config = read_config(body)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, _ = read_model(kind, body, config, dtype=dtype_of(precision))
    _expect(files, f"{ITEM_TOKENS}, items", len(tokens), manifest.catalog_size)
    _expect(files, "backbone/, architecture", type(model).__name__, manifest.architecture)
    vocabulary = int(model.config.get_text_config().vocab_size)
    if not 0 <= int(tokens.tokens.min()) <= int(tokens.tokens.max()) < vocabulary:
        raise ArtifactError(
            f"{ITEM_TOKENS} of {files.name} holds tokens from {tokens.tokens.min()} to {tokens.tokens.max()}, and "
            f"backbone/ has {vocabulary}"
        )
    ready = on_device(cast(nn.Module, model), device, files.name).eval().requires_grad_(False)
    if precision == "int8":
        quantise(cast(Any, ready).base_model)
    if precision == "bf16":
        prepack(cast(Any, ready).base_model)
    options: dict[str, Any] = {
        "history_limit": manifest.history_limit,
        "default": GenerationSettings(manifest.beams, manifest.max_new_tokens),
    }
    writer: ItemGenerator
    if manifest.grounding is not None:
        names = ItemIdentifiers(tokens, popular_N, spelling)
        writer = read_grounded(files, manifest, ready, names, precision=precision, **options)
    elif manifest.choice is not None:
        writer = read_choosing(files, manifest, ready, ItemIdentifiers(tokens, popular_N, spelling), **options)
    else:
        trie = build_trie([tokens[row].tolist() for row in range(len(tokens))], manifest.end)
        tasks = None if manifest.tasks is None else read_tasks(files, manifest, ready)
        writer = trie_generator(
            ready, spelling, tokens, trie, popular_N, end=manifest.end, tasks=tasks, renormalize=manifest.renormalize,
            **options,
        )  # fmt: skip
    return GenerativeArtifact(files.folder, manifest, writer, golden, precision)


def _spelling(files: Files, manifest: GenerativeManifest) -> ItemTokenizer:
    if manifest.names == "codes":
        return CodeTokenizer(manifest.code_sizes, manifest.user_buckets)
    tokenizer = load_tokenizer(manifest.name, folder=files.below("backbone"))
    _expect(files, "backbone/, sha256 of the tokenizer", TextTokenizer(tokenizer).sha256, manifest.tokenizer_sha256)
    if manifest.title_limit is None:
        raise ArtifactError(f"{MANIFEST} of {files.name} has names 'titles' and no title_limit")
    return TitleTokenizer(tokenizer, manifest.title_limit)


def _expect(files: Files, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ArtifactError(f"{what}: {files.name} holds {found!r}, and {MANIFEST} expects {expected!r}")
