"""Shapes of decoders that are built with random weights, for timing only."""

from __future__ import annotations

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "small": {  # 26 M weights
        "class": "Qwen3Config", "vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1536,
        "tie_word_embeddings": True,
    },
    "qwen3-0.6b": {
        "class": "Qwen3Config", "vocab_size": 151_936, "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "class": "LlamaConfig", "vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "class": "Qwen3Config", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
        "tie_word_embeddings": True,
    },
}  # fmt: skip


def config_of(name: str, **given: Any) -> Any:
    """The configuration of a shape, as `transformers` has it."""
    import transformers

    shape = {key: value for key, value in SHAPES[name].items() if key != "class"}
    return getattr(transformers, SHAPES[name]["class"])(**shape, **given)
