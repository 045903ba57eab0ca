"""Tiny GGUF files, written with the package gguf as llama.cpp's converter would write them from a random model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

TITLES = ("Toy Story (1995)", "Heat", "red lamp", "blue lamp")
END = "<|end|>"


def tiny_model(architecture: str) -> Any:
    """A random causal language model of two layers with a head of its own; ``llama`` or ``qwen2``."""
    import transformers as t

    torch.manual_seed(5)
    shape: dict[str, Any] = {
        "vocab_size": len(_tokens()[0]), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
        "tie_word_embeddings": architecture == "llama", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    kinds: dict[str, Any] = {"llama": (t.LlamaConfig, t.LlamaForCausalLM), "qwen2": (t.Qwen2Config, t.Qwen2ForCausalLM)}
    config, model = kinds[architecture]
    return model(config(**shape)).eval()


def write_gguf(model: Any, path: Path) -> Path:
    """Write ``model`` and a byte-level tokenizer that knows a few words; weights are stored as they are."""
    config, kind = model.config, model.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens, merges = _tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(len(tokens) - 1)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, kind.upper()), config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        part = name.split(".")[-2]
        stored = _interleaved(tensor, heads[part]) if kind == "llama" and part in heads else tensor
        known = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert known is not None, f"GGUF has no name for {name}"
        writer.add_tensor(known, stored.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries and keys as llama.cpp turns them: pairs beside each other, not in two halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()


def _tokens() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE trained on a few titles, the end token last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TITLES] * 3, trainer)
    import json

    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return [*tokens, END], [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
