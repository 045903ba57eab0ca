"""Storage shared by all generative methods: a language model with its head (causal or encoder-decoder) and the token
sequences of the catalog's items.

A fully trained model is stored in ``backbone/``, with its tokenizer, in Hugging Face's format. Of a model trained
through an adapter, base and adapter are stored separately (`modeling.methods.base_tuned`). The item tokens are in
``item_tokens.safetensors``; a method may add files. Nothing is pickled.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

from numpy.typing import NDArray
from torch import nn

from index.trie import TokenTrie
from modeling.artifact.golden import AnyCase, WrittenCase
from modeling.artifact.manifest import MANIFEST, ArtifactError, on_device
from modeling.artifact.sizes import check_history, check_holds
from modeling.artifact.tensor_files import save_arrays, save_pretrained
from modeling.artifact.verified import Files, Folder
from modeling.backbone.loading import TextTokenizer, load_tokenizer
from modeling.backbone.pretrained import read_config, read_model
from modeling.encoder.build import Sources
from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ITEM_TOKENS, ItemGenerator, ItemIdentifiers
from modeling.generation.item_tokenizer import CodeTokenizer, ItemTokenizer, TitleTokenizer
from modeling.inference.int8_linear import Precision, dtype_of, quantise
from modeling.inference.prepacked_linear import prepack
from modeling.methods import Loaded, load
from modeling.methods.base import PRECISIONS, BackboneRecord, LoadContext, Method, Record, Shape
from modeling.methods.base_tuned import BASE, TunedWriter, base_files, read_tuned
from modeling.spec import AdapterSpec


class GeneratorRecord(Record):
    """Manifest record of a language model with its head, which generates items token by token.

    Attributes:
        architecture: class of the model in ``backbone/``.
        names: token sequence of an item: its title, or the codes of its semantic ID.
        end: token that ends every generated item and every item of a history, and begins every prompt. None for an
            encoder-decoder, whose items all have the same length.
        history_limit: maximum number of items read, counted from the newest.
        title_limit: maximum tokens of a title; None for codes.
        code_sizes: number of codes per level; empty for titles.
        user_buckets: number of tokens that user ids are hashed to; 0 if user ids are not read.
        beams, max_new_tokens: decoding settings of the evaluation, and the defaults when served.
        backbone: base of a model trained through an adapter; None: ``backbone/`` holds the whole model.
        adapter: settings of the adapter in ``adapter/``.
    """

    architecture: str
    names: Literal["titles", "codes"]
    end: int | None
    history_limit: int
    title_limit: int | None
    code_sizes: tuple[int, ...]
    user_buckets: int = 0
    beams: int
    max_new_tokens: int
    backbone: BackboneRecord | None = None
    adapter: AdapterSpec | None = None

    @property
    def default(self) -> GenerationSettings:
        """Decoding settings of the evaluation."""
        return GenerationSettings(self.beams, self.max_new_tokens)


R = TypeVar("R", bound=GeneratorRecord)


class NamedModel(Protocol):
    """Attributes that `GenerativeMethod` stores: of an `ItemGenerator`, or of a ranker that prompts a language model
    (`modeling.methods.base_prompted.PromptRanker`)."""

    model: nn.Module
    names: ItemIdentifiers
    tuned: Any
    end: int | None
    history_limit: int
    default: GenerationSettings


class GenerativeMethod(Method[R]):
    """Stores and loads a `NamedModel`. Files besides the language model are the subclass's own."""

    shape: ClassVar[Shape] = "list"
    Case: ClassVar[type[AnyCase]] = WrittenCase

    @abstractmethod
    def save_parts(self, folder: Path, model: Any) -> dict[str, Any]:
        """Write the files besides the language model; returns the fields of `Record` that the method adds."""

    @abstractmethod
    def generator(
        self, record: R, context: LoadContext, network: nn.Module, names: ItemIdentifiers, base: nn.Module | None
    ) -> Any:
        """The `NamedModel` over a loaded language model; raises `ArtifactError`.

        Args:
            record, context: see `Method.load`.
            network: the model with its head, on the device.
            names: token sequences of the items.
            base: the untuned model, if the artifact holds an adapter.
        """

    def save(self, folder: Path, model: Any) -> R:
        """See `Method.save`; ``model`` is a `NamedModel`."""
        generator: NamedModel = model
        network, tuned = cast(Any, generator.model), generator.tuned
        if tuned is None:
            save_pretrained(network, folder / BASE)
        else:
            tuned.copy_to(folder)
        spelling, tokens = generator.names.spelling, generator.names.tokens
        titles = spelling if isinstance(spelling, TitleTokenizer) else None
        codes = spelling if isinstance(spelling, CodeTokenizer) else None
        if titles is not None and (tuned is None or tuned.backbone.stored):
            titles.tokenizer.save_pretrained(str(folder / BASE))
        save_arrays({"offsets": tokens.offsets, "tokens": tokens.tokens}, folder / ITEM_TOKENS)
        return self.Record(
            architecture=type(network).__name__,
            names="codes" if titles is None else "titles",
            end=generator.end,
            history_limit=generator.history_limit,
            title_limit=None if titles is None else titles.limit,
            code_sizes=() if codes is None else codes.sizes,
            user_buckets=0 if codes is None else codes.user_buckets,
            beams=cast(int, generator.default.beams),
            max_new_tokens=cast(int, generator.default.max_new_tokens),
            backbone=None if tuned is None else tuned.backbone,
            adapter=None if tuned is None else tuned.adapter,
            **self.save_parts(folder, generator),
        )

    def load(self, record: R, context: LoadContext) -> Any:
        """See `Method.load`. With ``int8`` the head is not quantised."""
        files, popular_N = context.files, context.popular()
        arrays = files.arrays(ITEM_TOKENS)
        tokens = TitleTokens(arrays["offsets"], arrays["tokens"])
        spelling = _spelling(record, context)
        model, base = _networks(record, context)
        _expect(files, f"{ITEM_TOKENS}, items", len(tokens), context.manifest.catalog_size)
        _expect(files, "backbone/, architecture", type(model).__name__, record.architecture)
        vocabulary = int(cast(Any, model).config.get_text_config().vocab_size)
        if not 0 <= int(tokens.tokens.min()) <= int(tokens.tokens.max()) < vocabulary:
            raise ArtifactError(
                f"{ITEM_TOKENS} of {files.name} holds tokens from {tokens.tokens.min()} to {tokens.tokens.max()}, and "
                f"backbone/ has {vocabulary}"
            )
        ready = made_ready(model, context, lambda network: network.base_model)
        found = self.generator(record, context, ready, ItemIdentifiers(tokens, popular_N, spelling), base)
        if record.backbone is not None and record.adapter is not None:
            found.tuned = TunedWriter(record.backbone, record.adapter, files)
        return found

    def check_sizes(self, files: Files, catalog_size: int, record: R) -> None:
        """See `Method.check_sizes`: the item tokens and the history limit."""
        check_holds(files, ITEM_TOKENS, f"catalog_size {catalog_size}", 4 * catalog_size)
        check_history(files, record.history_limit)

    def backbone(self, record: R) -> BackboneRecord | None:
        """See `Method.backbone`: the base under an adapter."""
        return record.backbone

    def precisions(self, record: R) -> tuple[Precision, ...]:
        """See `Method.precisions`: a network that generates codes is small and stays in fp32."""
        return ("fp32",) if record.names == "codes" else PRECISIONS

    def tokenizer_sha256(self, model: Any) -> str | None:
        """See `Method.tokenizer_sha256`: of the tokenizer of titles."""
        spelling = model.names.spelling
        return TextTokenizer(spelling.tokenizer).sha256 if isinstance(spelling, TitleTokenizer) else None


def _networks(record: GeneratorRecord, context: LoadContext) -> tuple[nn.Module, nn.Module | None]:
    """The model, and the untuned model if the artifact holds an adapter."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    dtype = dtype_of(context.precision)
    if record.backbone is not None and record.adapter is not None:
        return read_tuned(AutoModelForCausalLM, record.backbone, record.adapter, context, dtype)
    body = context.files.below(BASE)
    config = read_config(body)
    kind: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return read_model(kind, body, config, dtype=dtype)[0], None


def made_ready(model: nn.Module, context: LoadContext, body: Callable[[Any], nn.Module]) -> nn.Module:
    """A model on the device, in evaluation mode and in the requested precision.

    Args:
        model: with its head.
        context: device and precision.
        body: returns the part of the model that is quantised; the head keeps its precision.
    """
    ready = on_device(model, context.device, context.name).eval().requires_grad_(False)
    if context.precision == "int8":
        quantise(body(ready))
    if context.precision == "bf16":
        prepack(body(ready))
    return ready


def load_generative(
    folder: Folder | str,
    popular_N: NDArray[Any] | None = None,
    *,
    sources: Sources | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    verify: bool = True,
) -> Loaded[ItemGenerator]:
    """`modeling.methods.load` for an artifact whose method is a `GenerativeMethod`."""
    return load(folder, popular_N, shape="list", device=device, precision=precision, verify=verify, sources=sources)


def trie_of(tokens: TitleTokens, end: int | None) -> TokenTrie:
    """The trie of all item token sequences; takes about a second for ten thousand titles."""
    return TokenTrie.build([tokens[row].tolist() for row in range(len(tokens))], end)


def title_end(record: GeneratorRecord, context: LoadContext, what: str) -> int:
    """The token that ends a title; raises `ArtifactError` if the record, described by ``what``, has none."""
    if record.end is None:
        raise ArtifactError(f"the manifest of {context.name} has {what} and no end token, which closes a title")
    return record.end


def _spelling(record: GeneratorRecord, context: LoadContext) -> ItemTokenizer:
    if record.names == "codes":
        return CodeTokenizer(record.code_sizes, record.user_buckets)
    files, manifest = context.files, context.manifest
    place = files.below(BASE) if record.backbone is None else base_files(record.backbone, context)
    tokenizer = load_tokenizer(manifest.name, folder=place)
    _expect(files, "backbone/, sha256 of the tokenizer", TextTokenizer(tokenizer).sha256, manifest.tokenizer_sha256)
    if record.title_limit is None:
        raise ArtifactError(f"{MANIFEST} of {files.name} has names 'titles' and no title_limit")
    return TitleTokenizer(tokenizer, record.title_limit)


def _expect(files: Files, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ArtifactError(f"{what}: {files.name} holds {found!r}, and {MANIFEST} expects {expected!r}")
