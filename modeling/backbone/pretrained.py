"""A folder in Hugging Face's format becomes config, tokenizer and model: without code of its own, without a network
unless asked for, and from bytes that were read once.

Only files of known names are opened. The libraries that insist on paths get a private copy of the small ones; weights
are handed over as tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from modeling.artifact.folders import ArtifactError, one_line
from modeling.artifact.plain_json import JsonError, parse
from modeling.artifact.tensor_reader import tensor_bytes
from modeling.artifact.verified import Files, Folder, files_of
from modeling.backbone.weights_hash import noted_sha256
from modeling.transformers_private import name_config

CONFIG, WEIGHTS, WEIGHTS_INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OF_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d+)\.")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)
DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model")
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate", "quantization_config", "attn_implementation",
             "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
             "_experts_implementation", "kernel_config", "fusion_config", "use_kernels", "adapter_kwargs",
             "gguf_file", "use_pretrained_backbone", "use_timm_backbone")  # fmt: skip
"""Entries of a config that name foreign code, a kernel or weights."""
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_Network = TypeVar("_Network", bound=nn.Module)
SLACK = 1 << 20  # weights that a config may have beyond twice what its files hold


class PretrainedError(ArtifactError):
    """A folder, or what a name stands for, is not a model that can be read; the message is one sentence."""


def files_behind(
    place: str, folder: Folder | None = None, *, revision: str | None = None, download: bool = False
) -> Files:
    """The files of ``folder``, else of the local folder or hub name ``place``.

    A hub is asked only where ``download`` is set; else its name is looked up in this machine's cache.

    Raises:
        PretrainedError: it is not there.
    """
    if folder is not None:
        return files_of(folder)
    if Path(place).is_dir():
        return Files(place)
    if not HUB_NAME.fullmatch(place):
        raise PretrainedError(f"{place!r} is neither a local folder nor a name on a hub")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            place, revision=revision, local_files_only=not download, allow_patterns=list(DOWNLOADED),
            ignore_patterns=["*/*"],
        )  # fmt: skip
    except Exception as error:  # the hub's, its HTTP library's and the system's
        how = (
            f"a hub name that can be reached: {error}"
            if download
            else (
                "in this machine's cache of hub models, and downloading is off; download it with `hf download` first, "
                "or set ANYO_ALLOW_DOWNLOADS=true for a service"
            )
        )
        raise PretrainedError(f"{place!r} is neither a local folder with config.json nor {how}") from error
    return Files(found)


def read_config(files: Files, revision: str | None = None) -> Any:
    """The config of a model of text; raises PretrainedError, ArtifactError."""
    from transformers import AutoConfig

    with files.private_copy({CONFIG: _plain(files, CONFIG)}) as place:
        try:
            config = AutoConfig.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a hostile config makes a config class raise
            raise PretrainedError(f"{CONFIG} of {files.name} cannot be used: {one_line(error)}") from error
    name_config(config, files.name)
    return config


def read_tokenizer(files: Files) -> Any:
    """The tokenizer in a folder; raises PretrainedError, ArtifactError."""
    from transformers import AutoTokenizer

    known = [name for name in (CONFIG, *TOKENIZER_FILES) if name in files]
    if not set(known) - {CONFIG}:
        raise PretrainedError(f"{files.name} holds no tokenizer")
    plain = {"tokenizer_config.json", CONFIG}
    copies = {name: _plain(files, name) if name in plain else files.read(name) for name in known}
    with files.private_copy(copies) as place:
        try:
            return AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a hostile file makes them raise
            raise PretrainedError(f"the tokenizer of {files.name} cannot be read: {one_line(error)}") from error


def read_model(
    kind: Any,
    files: Files,
    config: Any,
    *,
    dtype: torch.dtype,
    skip: Collection[str] = (),
    layers: int | None = None,
    **options: Any,
) -> tuple[Any, str]:
    """A model of an auto class with its weights, and the sha256 of all files of weights, names included.

    ``skip`` are tensors that are not read. ``layers``: how many ``config`` has, where the files may hold more.

    Raises:
        PretrainedError, ArtifactError: there are none, or they do not fit ``config``.
    """
    state, sha256 = _weights(files, skip, layers)
    made = _class_of(kind, files, config, state, **options)
    try:
        model = made.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **options,
        )
    except Exception as error:
        raise PretrainedError(f"the weights of {files.name} do not fit its {CONFIG}: {one_line(error)}") from error
    return model, sha256


def _weights(files: Files, skip: Collection[str], layers: int | None) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors of the first ``layers`` layers (None: of all) and of what belongs to none, and the hash of all files."""
    used: dict[str, list[str]] = {WEIGHTS: []}
    if WEIGHTS_INDEX in files:
        index = files.json(WEIGHTS_INDEX)
        places = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise PretrainedError(f"{WEIGHTS_INDEX} of {files.name} has no weight_map")
        used = {name: [key for key, place in places.items() if place == name] for name in sorted(set(places.values()))}
    for name in used:
        if name not in files or "/" in name or not name.endswith(".safetensors"):
            raise PretrainedError(f"{files.name} holds no {name[:80]}; weights are read from safetensors files only")
    known = noted_sha256(files)
    digest, state = hashlib.sha256(), {}
    for name in (name for name in files.names() if name.endswith(".safetensors") and "/" not in name):
        also = None if known else digest
        digest.update(name.encode())
        beyond = {key for key in used.get(name, ()) if layers is not None and _layer(key) >= layers}
        if name in used and not (beyond and len(beyond) == len(used[name])):
            state.update(files.tensors(name, skip={*skip, *beyond}, also=also))
        elif known is None:
            files.verify(name, also=also)
    return state, known or digest.hexdigest()


def bytes_of_layers(file: Path, layers: int) -> int:
    """Bytes of what a model of so many layers takes from a safetensors file; raises OSError, ValueError."""
    with file.open("rb") as stream:
        found = tensor_bytes(stream, file.stat().st_size)
    return sum(size for key, size in found.items() if _layer(key) < layers)


def _layer(key: str) -> int:
    """Number of the layer that a tensor belongs to, from 0; -1 for none."""
    found = OF_LAYER.search(key)
    return int(found.group(1)) if found else -1


def _class_of(kind: Any, files: Files, config: Any, state: dict[str, torch.Tensor], **options: Any) -> Any:
    """The class of the model that ``config`` describes, once it is known to need no more than its weights hold.

    What they lack would be allocated and filled at random. Raises PretrainedError.
    """
    text = config.get_text_config()
    layers, held = int(getattr(text, "num_hidden_layers", 0) or 0), sum(each.numel() for each in state.values())
    needed = layers * int(getattr(text, "hidden_size", 0) or 0)
    made = None
    if layers <= len(state) and needed <= held:
        try:
            with torch.device("meta"):
                skeleton = kind.from_config(config, **options)
        except Exception as error:
            raise PretrainedError(f"no model can be built from {CONFIG} of {files.name}: {one_line(error)}") from error
        made, needed = type(skeleton), sum(each.numel() for each in skeleton.parameters())
    if made is None or needed > 2 * held + SLACK:
        raise PretrainedError(
            f"{CONFIG} of {files.name} asks for {layers} layers and at least {needed} weights, and its files hold "
            f"{held} in {len(state)} tensors"
        )
    return made


def _plain(files: Files, name: str) -> bytes:
    """A config without what names code or paths: in an artifact that is refused, elsewhere left out."""
    try:
        config = parse(files.read(name), f"{name} of {files.name}")
    except JsonError as error:
        raise PretrainedError(str(error)) from error
    if not isinstance(config, dict):
        raise PretrainedError(f"{name} of {files.name} is not a JSON object")
    return json.dumps(_without_code(config, files, name)).encode()


def _without_code(value: Any, files: Files, name: str) -> Any:
    if isinstance(value, list):
        return [_without_code(each, files, name) for each in value]
    if not isinstance(value, dict):
        return value
    found = [key for key in CODE_KEYS if value.get(key) is not None]
    if found and files.sealed:
        raise PretrainedError(
            f"{name} of {files.name} has {found[0]!r}, which brings in code or weights from elsewhere; an artifact "
            "holds numbers only"
        )
    paths = {key for key in value if isinstance(key, str) and key.endswith("_file")}
    return {key: _without_code(each, files, name) for key, each in value.items() if key not in {*CODE_KEYS, *paths}}


def weights_in(model: _Network, dtype: torch.dtype) -> _Network:
    """The model itself, its weights rounded to ``dtype``.

    Buffers stay as they are, which ``model.to`` would round too: the frequencies of rotary positions with eight bits
    turn a query 200 positions away by up to a third of a radian too far.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model
