"""Small random models of seven architectures, saved to disk as a hub would hand them out, and encoders around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling.encoder.build import Model, TextVectors, build_model
from modeling.encoder.item_tower import Whitening
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, PoolingSpec, ProjectorSpec

TITLES = [
    *("red lamp", "blue lamp", "green lamp of the north", "old chair", "new chair two", "garden table"),
    *("kitchen table small", "wool rug", "silk rug deluxe edition", "paper", "glass bowl", "clay bowl set"),
]
ITEMS = len(TITLES)
ARCHITECTURES = ("qwen3", "llama", "gemma3", "mistral", "gpt2", "opt", "bert")
VOCABULARY, HIDDEN, LAYERS = 300, 32, 2
RESIDUAL = ProjectorSpec(residual=True, recent=3)


def _config(name: str) -> Any:
    import transformers as t

    common: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    attention: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    positions: dict[str, Any] = {
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if name == "qwen3":
        return t.Qwen3Config(**common, **attention, **positions, head_dim=8, tie_word_embeddings=True)
    if name == "llama":
        return t.LlamaConfig(**common, **attention, **positions, tie_word_embeddings=False)
    if name == "gemma3":
        return t.Gemma3TextConfig(**common, **attention, **positions, head_dim=8, sliding_window=8)
    if name == "mistral":
        return t.MistralConfig(**common, **attention, **positions, sliding_window=None)
    if name == "gpt2":
        return t.GPT2Config(vocab_size=VOCABULARY, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=256)
    if name == "opt":
        return t.OPTConfig(**common, **positions, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=HIDDEN)
    return t.BertConfig(**common, num_attention_heads=4, intermediate_size=48, max_position_embeddings=256)


def _tokenizer(*more: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for title in TITLES for word in title.split()} | {"items", "chosen", *more})
    vocabulary = {word: n for n, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def widened(model: Any) -> Any:
    """The model with matrices so large that every token it reads changes what it says by far more than rounding."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(8)
    return model


def write_backbone(path: Path, name: str, titles: Sequence[str] = ()) -> Path:
    """Save a checkpoint that has its ``lm_head`` and also knows the words of `titles`; returns `path`."""
    from transformers import AutoModelForCausalLM, BertForMaskedLM

    torch.manual_seed(7)
    config = _config(name)
    model = BertForMaskedLM(config) if name == "bert" else AutoModelForCausalLM.from_config(config)
    model.save_pretrained(str(path))
    tokenizer = _tokenizer(*(word for title in titles for word in re.findall(r"\w+|[^\w\s]+", title)))
    assert len(tokenizer) <= VOCABULARY, f"{len(tokenizer)} words are too many"
    tokenizer.save_pretrained(str(path))
    return path


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from an architecture's name to a saved checkpoint that has its ``lm_head``."""
    root = tmp_path_factory.mktemp("backbones")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else write_backbone(path, name)

    return folder


@pytest.fixture(scope="session")
def writer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved decoder that knows the words of `testing.datasets` and writes them, other ones behind other prompts."""
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("backbones") / "writer"
    torch.manual_seed(7)
    tokenizer, config = _tokenizer("tall", "wide", *map(str, range(50))), _config("llama")
    config.vocab_size = len(tokenizer)
    widened(AutoModelForCausalLM.from_config(config)).save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path


@pytest.fixture
def small_model(backbone_folder: Callable[[str], Path]) -> Callable[..., Model]:
    """A function that builds a model over the twelve items: ``small_model("titles", architecture="llama")``."""

    def build(form: str, architecture: str = "qwen3", *, seed: int = 0, **slots: Any) -> Model:
        torch.manual_seed(seed)
        if form == "ids":
            spec = ModelSpec(
                history=HistorySpec(form="ids", dropout=0.0),
                backbone=BackboneSpec(width=16, depth=2, heads=2, dropout=0.0),
                projector=ProjectorSpec(kind="identity"),
                items=ItemsSpec(tower="id", dim=16),
            )
        else:
            spec = ModelSpec(
                history=HistorySpec(form=form, dropout=0.0, instruction="items chosen", **slots.pop("history", {})),
                backbone=BackboneSpec(
                    source=str(backbone_folder(architecture)), dropout=0.0, attention=slots.pop("attention", "causal")
                ),
                pooling=slots.pop("pooling", PoolingSpec()),
                adapter=slots.pop("adapter", AdapterSpec(kind="lora", rank=4, alpha=8)),
                projector=slots.pop("projector", ProjectorSpec() if form == "text" else RESIDUAL),
                items=slots.pop("items", ItemsSpec(tower="both", dim=16)),
            )
        text = None
        if spec.needs_text_vectors:
            raw = np.random.default_rng(1).normal(size=(ITEMS, 24)).astype(np.float32)
            whitening = Whitening.fit(raw, 8)
            text = TextVectors(whitening(raw), whitening)
        model = build_model(spec, catalog_size=ITEMS, titles=TITLES, text=text)
        model.encoder.eval()
        return model

    return build


def write_byte_level(folder: Path, labels: Sequence[str] = ("Yes", "No")) -> Path:
    """Save a small random causal language model whose tokenizer spells any text, byte by byte; ``labels`` are single
    tokens behind a space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "<s>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator([f" {label}" for label in labels], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, head_dim=8, max_position_embeddings=2048, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(7)
    widened(AutoModelForCausalLM.from_config(config)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
