"""Files of a P5 artifact in addition to the model: the word tokenizer and the whole-word embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from modeling.artifact.manifest import ArtifactError, one_line
from modeling.artifact.tensor_files import save_tensors
from modeling.artifact.verified import Files
from modeling.generation.whole_word_embedding import WORDS, WholeWordEmbedding
from modeling.methods.base_generative import GeneratorRecord
from modeling.methods.p5_prompts import Family, Language

WORDS_FILE, VECTORS_FILE = "tasks/words.json", "tasks/whole_words.safetensors"


@dataclass(frozen=True)
class Tasks:
    """Parts that a `P5Generator` has in addition to a `TrieGenerator`.

    Attributes:
        language: encodes prompts as tokens.
        families: task families the model was trained on.
        whole_words: whole-word embedding; None for a model without one.
    """

    language: Language
    families: tuple[Family, ...]
    whole_words: WholeWordEmbedding | None


class P5Record(GeneratorRecord):
    """Manifest record of a `P5Generator`.

    Attributes:
        families: task families the model was trained on.
        user_sizes: number of tokens for each digit group of a user's number.
        ratings: possible ratings, ascending.
        whole_words: whether the model has a whole-word embedding, ``tasks/whole_words.safetensors``.
    """

    families: tuple[Family, ...]
    user_sizes: tuple[int, ...]
    ratings: tuple[float, ...]
    whole_words: bool


def write_tasks(folder: Path, tasks: Tasks) -> dict[str, Any]:
    """Write the files; returns the fields of `P5Record` that describe them."""
    (folder / "tasks").mkdir()
    language = tasks.language
    (folder / WORDS_FILE).write_text(language.tokenizer.to_str() + "\n", encoding="utf-8")
    if tasks.whole_words is not None:
        save_tensors({"table": tasks.whole_words.table.weight}, folder / VECTORS_FILE)
    return {
        "families": tasks.families,
        "user_sizes": language.user_sizes,
        "ratings": language.ratings,
        "whole_words": tasks.whole_words is not None,
    }


def read_tasks(files: Files, record: P5Record, model: nn.Module) -> Tasks:
    """Read the files of an artifact.

    Raises:
        ArtifactError: a file is missing, or does not fit the model.
    """
    from tokenizers import Tokenizer

    config = cast(Any, model).config
    text = files.read(WORDS_FILE)
    table = files.tensors(VECTORS_FILE)["table"] if record.whole_words else None
    try:
        tokenizer = Tokenizer.from_str(text.decode("utf-8"))
    except Exception as error:  # the one class that `tokenizers` raises
        raise ArtifactError(f"{WORDS_FILE} of {files.name} is no tokenizer: {one_line(error)}") from error
    if record.end is None:
        raise ArtifactError(f"the manifest of {files.name} has tasks and no end token, which closes an answer")
    language = Language(
        tokenizer, item_sizes=record.code_sizes, user_sizes=record.user_sizes, ratings=record.ratings,
        end=record.end,
    )  # fmt: skip
    if language.vocabulary != config.vocab_size:
        raise ArtifactError(
            f"{WORDS_FILE} of {files.name} makes a vocabulary of {language.vocabulary}, and backbone/ has "
            f"{config.vocab_size}"
        )
    if table is None:
        return Tasks(language, record.families, None)
    if table.shape != (WORDS, config.hidden_size):
        raise ArtifactError(
            f"{VECTORS_FILE} of {files.name} holds {tuple(table.shape)}, and backbone/ expects "
            f"{(WORDS, config.hidden_size)}"
        )
    words = WholeWordEmbedding(language.begins_V, config.hidden_size)
    with torch.no_grad():
        words.table.weight.copy_(table)
    like = next(model.parameters())
    return Tasks(language, record.families, words.to(like.device, like.dtype).eval().requires_grad_(False))
