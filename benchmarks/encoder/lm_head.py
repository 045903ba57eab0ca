"""Savings of leaving out `lm_head`, by architecture: counted on the meta device, so no weight is made or read.

    python -m benchmarks.encoder.lm_head [--backbone smollm2 --layers 8]

Where the head is tied to the input embeddings nothing of memory is saved, only its product with every position and the
logits that it would give. Shapes are those of the published configurations, written out here: nothing is fetched. With
`--backbone` the first layers of a model with a tied head are also timed, in fp32 on one thread: a prompt alone, and
with the logits of all its positions. The last line is one JSON object; the program fails where a count is not what
the shapes say.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import torch
from torch import nn

from benchmarks.encoder.forward import milliseconds
from benchmarks.lib.results import ResultFile, rows_of
from modeling.backbone.loading import load_backbone
from modeling.spec import BackboneSpec

BF16 = 2  # bytes
PROMPT = 184  # positions: about twenty titles

RESULT = ResultFile(__file__, __doc__)


def configurations() -> dict[str, Any]:
    """Return the configurations by the names of the models that have them."""
    from transformers import LlamaConfig, MistralConfig, Qwen3Config

    return {
        "SmolLM2-135M": LlamaConfig(
            vocab_size=49_152, hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
            head_dim=64, intermediate_size=1536, tie_word_embeddings=True,
        ),
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


@torch.inference_mode()
def timed(source: str, layers: int | None, rounds: int = 5) -> dict[str, Any]:
    """Return median milliseconds of a prompt without and with its logits, in turn, and the bytes of the logits."""
    body, _ = load_backbone(BackboneSpec(source=source, layers=layers, dropout=0.0))
    words: Any = body.get_input_embeddings()  # type: ignore[operator]
    prompt_1T = torch.arange(PROMPT)[None]

    def alone() -> torch.Tensor:
        states_1TH: torch.Tensor = body.eval()(input_ids=prompt_1T, use_cache=False).last_hidden_state
        return states_1TH

    def with_logits() -> torch.Tensor:
        return nn.functional.linear(alone(), words.weight)

    logits = with_logits()
    taken = [(milliseconds(alone), milliseconds(with_logits)) for _ in range(rounds)]
    without, whole = (round(statistics.median(each), 1) for each in zip(*taken, strict=True))
    return {
        "backbone": source, "layers": layers, "without_ms": without, "with_logits_ms": whole,
        "times": round(statistics.median(b / a for a, b in taken), 2), "logits_fp32_mb": round(logits.nbytes / 1e6, 1),
    }  # fmt: skip


def _mb(numbers: int) -> float:
    return round(numbers * BF16 / 1e6, 1)


def main() -> None:
    """Count all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", help="also timed; its head is tied")
    parser.add_argument("--layers", type=int, help="the first so many of it; all if not given")
    RESULT.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: row(config) for name, config in configurations().items()}
    for name, found in rows.items():
        print(
            f"{name:13s} {'tied' if found['tied'] else 'untied':7s} served {found['served_mb']:9,.1f} MB, "
            f"saved {found['saved_mb']:8,.1f} MB, {found['saved_gflop_a_prompt']:6.1f} GFLOP and "
            f"{found['logits_mb_a_prompt']:5.1f} MB of logits a prompt of {PROMPT} positions"
        )
    measured = None if options.backbone is None else timed(options.backbone, options.layers)
    table = rows_of(rows) + ([] if measured is None else rows_of([measured]))
    RESULT.publish({"counted": rows, "timed": measured}, options.result, table)
    if not all(found["as_the_shapes_say"] for found in rows.values()):
        sys.exit("a head is not what its shapes say")


if __name__ == "__main__":
    main()
