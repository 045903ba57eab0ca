"""``tiny``: a tokenizer and a small Qwen3-architecture decoder, both trained here on the catalog's own texts.

It needs no download and shows every part of the dense path at work. It has read item texts and training sequences
only, so what it knows of language it learned from them: validation and test items of a user never enter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling.artifact.atomic import replaced_folder
from modeling.backbone.loading import TextTokenizer
from training.loop.budget import check_time
from training.loop.progress import TrainingProgress, say_progress
from training.recipe import RecipeError

VOCABULARY = 4096
BLOCK = 128
TOKEN_BUDGET = 1_500_000
"""Tokens read in pretraining: about a minute on two cores."""
LAYERS, WIDTH, HEADS = 4, 128, 4
END = "<|end|>"


def ensure_tiny(
    titles: Sequence[str],
    categories: Sequence[Sequence[str]],
    sequences: Sequence[NDArray[Any]],
    *,
    cache: Path,
    seed: int,
    console: Console,
) -> Path:
    """The folder of ``tiny`` for this catalog and these training sequences, trained unless ``cache`` has it."""
    digest = hashlib.sha256(json.dumps([titles, categories, seed, TOKEN_BUDGET, LAYERS, WIDTH]).encode())
    for sequence in sequences:
        digest.update(np.asarray(sequence, np.int32).tobytes() + b".")
    folder = cache / f"tiny-{digest.hexdigest()[:12]}"
    if (folder / "config.json").exists():
        console.print(f"backbone tiny: using {folder}")
        return folder
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "backbone 'tiny' is not made yet, and torchrun runs several processes: make it with one first"
        )
    console.print(f"backbone tiny: training tokenizer and language model on {len(titles)} titles and the histories")
    texts = [_item_text(title, names) for title, names in zip(titles, categories, strict=True)]
    tokenizer = _train_tokenizer(texts)
    tokens = _corpus(tokenizer, titles, texts, sequences, seed)
    with replaced_folder(folder, "backbone") as work:
        model = _train_model(tokenizer, tokens, work / "run", seed, console)
        _remove(work / "run")
        model.save_pretrained(str(work))
        tokenizer.save_pretrained(str(work))
    return folder


def _item_text(title: str, categories: Sequence[str]) -> str:
    return f"{title} ({', '.join(categories)})" if categories else title


def byte_level_bpe(texts: Sequence[str], size: int, end: str) -> Tokenizer:
    """Train a byte-level BPE with `end` as token 0: any text has tokens, so nothing a user types is unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    backend = byte_level_bpe(texts, VOCABULARY, END)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=END)


def _corpus(
    tokenizer: PreTrainedTokenizerFast,
    titles: Sequence[str],
    texts: Sequence[str],
    sequences: Sequence[NDArray[Any]],
    seed: int,
) -> NDArray[np.int64]:
    """Item texts and histories (titles one after the other) as one stream of tokens, in random order."""
    end = tokenizer.get_vocab()[END]
    pieces = TextTokenizer(tokenizer)
    title_ids = pieces(titles)
    documents = [[end, *ids] for ids in pieces(texts)]
    for sequence in sequences:
        documents.append([end, *(token for row in sequence for token in title_ids[row])])
    order = np.random.default_rng(seed).permutation(len(documents))
    return np.concatenate([np.asarray(documents[n], np.int64) for n in order])


class _Blocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, tokens: NDArray[np.int64]) -> None:
        whole = np.resize(tokens, max(BLOCK, len(tokens) // BLOCK * BLOCK))
        self._blocks = torch.from_numpy(whole.reshape(-1, BLOCK))

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._blocks[index], "labels": self._blocks[index]}


def _train_model(
    tokenizer: PreTrainedTokenizerFast, tokens: NDArray[np.int64], work: Path, seed: int, console: Console
) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        head_dim=WIDTH // HEADS,
        intermediate_size=3 * WIDTH,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=False,
    )
    blocks = _Blocks(tokens)
    batch = 16
    arguments = TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=batch,
        max_steps=max(20, min(TOKEN_BUDGET, 6 * len(tokens)) // (batch * BLOCK)),
        learning_rate=2e-3,
        warmup_steps=20,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        save_strategy="no",
        logging_steps=100,
        report_to=[],
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    model = Qwen3ForCausalLM(config)
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks, callbacks=[_InTime()])
    say_progress(trainer, TrainingProgress(console, selected_on=None, name="backbone tiny"))
    trainer.train()
    return model


class _InTime(TrainerCallback):
    """Ends the pretraining with an error where the run's time is over: half of it would be kept for later runs too."""

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        check_time("training the backbone 'tiny'")


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
