"""What leaving out `lm_head` saves, by architecture: counted on the meta device, so no weight is made or read.

    python -m benchmarks.encoder.lm_head

Where the head is tied to the input embeddings nothing of memory is saved, only its product with every position and the
logits that it would give. Shapes are those of the published configurations, written out here: nothing is fetched. The
last line is one JSON object; the program fails where a count is not what the shapes say.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

BF16 = 2  # bytes
PROMPT = 184  # positions: about twenty titles


def configurations() -> dict[str, Any]:
    """Return the configurations by the names of the models that have them."""
    from transformers import LlamaConfig, MistralConfig, Qwen3Config

    return {
        "Qwen3-0.6B": Qwen3Config(
            vocab_size=151_936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
            head_dim=128, intermediate_size=3072, tie_word_embeddings=True,
        ),
        "Qwen3-8B": Qwen3Config(
            vocab_size=151_936, hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8,
            head_dim=128, intermediate_size=12_288, tie_word_embeddings=False,
        ),
        "Llama-3.2-1B": LlamaConfig(
            vocab_size=128_256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
            head_dim=64, intermediate_size=8192, tie_word_embeddings=True,
        ),
        "Llama-2-7B": LlamaConfig(
            vocab_size=32_000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
            intermediate_size=11_008, tie_word_embeddings=False,
        ),
        "Mistral-7B": MistralConfig(
            vocab_size=32_000, hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=14_336, tie_word_embeddings=False,
        ),
    }  # fmt: skip


def parameters(model: nn.Module) -> int:
    """Return how many different numbers a model holds; what is tied counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def row(config: Any) -> dict[str, Any]:
    """Return what one architecture holds with and without its head, in MB (10^6 bytes) of bf16."""
    from transformers import AutoModel, AutoModelForCausalLM

    with torch.device("meta"):
        whole, body = AutoModelForCausalLM.from_config(config), AutoModel.from_config(config)
        whole.tie_weights()
    head = config.vocab_size * config.hidden_size
    return {
        "tied": bool(config.tie_word_embeddings),
        "with_head_mb": _mb(parameters(whole)),
        "served_mb": _mb(parameters(body)),
        "saved_mb": _mb(parameters(whole) - parameters(body)),
        "saved_gflop_a_prompt": round(2 * head * PROMPT / 1e9, 1),
        "logits_mb_a_prompt": _mb(config.vocab_size * PROMPT),
        "as_the_shapes_say": parameters(whole) - parameters(body) == (0 if config.tie_word_embeddings else head),
    }


def _mb(numbers: int) -> float:
    return round(numbers * BF16 / 1e6, 1)


def main() -> None:
    """Count all of them."""
    rows = {name: row(config) for name, config in configurations().items()}
    for name, found in rows.items():
        print(
            f"{name:13s} {'tied' if found['tied'] else 'untied':7s} served {found['served_mb']:9,.1f} MB, "
            f"saved {found['saved_mb']:8,.1f} MB, {found['saved_gflop_a_prompt']:6.1f} GFLOP and "
            f"{found['logits_mb_a_prompt']:5.1f} MB of logits a prompt of {PROMPT} positions"
        )
    print(json.dumps(rows))
    if not all(found["as_the_shapes_say"] for found in rows.values()):
        sys.exit("a head is not what its shapes say")


if __name__ == "__main__":
    main()
