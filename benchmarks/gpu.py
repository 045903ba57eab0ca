"""The dense forward and the search on a GPU, on the shapes of small language models with random weights.

    python -m benchmarks.gpu [--shapes qwen3-0.6b,llama-3.2-1b] [--minutes 7]

Needs Python, torch and transformers; no web stack, no FAISS, no network. For each shape: the latency of one history of
twenty titles, alone; positions a second of full batches, their share of the matrix rate that this device was just
measured to have in the same dtype, and the kernels of a batch; then exact top-100 over 1M and 10M items. Vectors of the
fast forward are compared with the plain one's first. Without a GPU, `--cpu` runs a tiny shape, to see that it runs. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from modeling.items import ItemTower
from modeling.prompt import PromptBuilder, TitleTokens
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec
from modeling.topk import DeviceIndex
from modeling.user_encoder import UserEncoder

CATALOG, TITLE_TOKENS, ITEMS, INSTRUCTION, DIM = 10_000, 9, 20, 32, 128
POSITIONS = (2048, 8192, 32768)
TOP, SEARCHED = 100, (1_000_000, 10_000_000)
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "class": "Qwen3Config", "vocab_size": 151_936, "hidden_size": 1024, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    },
    "llama-3.2-1b": {
        "class": "LlamaConfig", "vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
    },
    "tiny": {
        "class": "Qwen3Config", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128,
    },
}  # fmt: skip


def encoder_of(shape: dict[str, Any], device: str, dtype: torch.dtype, rng: np.random.Generator) -> UserEncoder:
    """A user encoder over titles, with an instruction; nothing of it was trained."""
    import transformers

    given = {name: value for name, value in shape.items() if name != "class"}
    config = getattr(transformers, shape["class"])(**given, max_position_embeddings=4096, use_cache=False)
    torch.manual_seed(0)
    with torch.device(device):
        backbone = transformers.AutoModel.from_config(config, dtype=dtype).eval()
    spec = ModelSpec(
        history=HistorySpec(form="titles", limit=ITEMS, title_tokens=TITLE_TOKENS),
        backbone=BackboneSpec(source="random"), adapter=AdapterSpec(kind="none"),
        items=ItemsSpec(tower="id", dim=DIM),
    )  # fmt: skip
    tokens = rng.integers(0, shape["vocab_size"], CATALOG * TITLE_TOKENS).astype(np.int32)
    prompts = PromptBuilder(
        form="titles", vectors_per_item=1, catalog_size=CATALOG,
        prefix=rng.integers(0, shape["vocab_size"], INSTRUCTION).tolist(),
        titles=TitleTokens(np.arange(CATALOG + 1, dtype=np.int64) * TITLE_TOKENS, tokens),
        item_limit=ITEMS, position_limit=4096,
    )  # fmt: skip
    items = ItemTower(spec.items, catalog_size=CATALOG)
    encoder = UserEncoder(spec, backbone=backbone, items=items, prompts=prompts, hidden_size=shape["hidden_size"])
    return encoder.to(device).eval().requires_grad_(False)


def milliseconds(work: Callable[[], object], device: str, rounds: int = 20) -> float:
    """Median of a few calls, each awaited; the first three do not count."""
    found = []
    for number in range(rounds + 3):
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        if number >= 3:
            found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def matrix_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second of one large product: what this device gives today."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / (milliseconds(lambda: left @ right, device) / 1000)


def kernels(work: Callable[[], object], device: str) -> int | None:
    """Kernels that one call launches."""
    if device == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if event.device_type.name == "CUDA")


def forward(name: str, device: str, dtype: torch.dtype, rate: float, end: float) -> dict[str, Any]:
    """Figures of one shape."""
    rng = np.random.default_rng(0)
    encoder = encoder_of(SHAPES[name], device, dtype, rng)

    def prompts(count: int) -> list[Any]:
        return [encoder.prepare(rng.integers(0, CATALOG, ITEMS).tolist()) for _ in range(count)]

    if reason := encoder.speed_up():
        raise SystemExit(f"{name}: no fast forward: {reason}")
    fast = encoder.fast
    assert fast is not None
    one = prompts(1)
    found: dict[str, Any] = {"difference_from_plain": fast.difference(), "positions_of_one": one[0].length}
    found["alone_ms"] = milliseconds(lambda: encoder.encode(one), device)
    found["alone_plain_ms"] = milliseconds(lambda: plain(encoder, one), device)
    found["kernels_of_one"] = kernels(lambda: encoder.encode(one), device)
    for positions in POSITIONS:
        if time.perf_counter() > end:
            break
        batch = prompts(max(1, positions // one[0].length))
        with FlopCounterMode(display=False) as counted:
            encoder.encode(batch)
        ms = milliseconds(lambda batch=batch: encoder.encode(batch), device, rounds=7)
        found[f"batch_of_{positions}"] = {
            "requests": len(batch),
            "ms": ms,
            "requests_per_second": 1000 * len(batch) / ms,
            "share_of_matrix_rate": counted.get_total_flops() / (ms / 1000) / rate,
            "kernels": kernels(lambda batch=batch: encoder.encode(batch), device),
        }
    return found


def plain(encoder: UserEncoder, prompts: list[Any]) -> None:
    """The plain forward."""
    with torch.inference_mode():
        encoder(encoder.collate(prompts)).cpu()


def search(items: int, device: str) -> dict[str, float]:
    """Exact top-k over random unit vectors."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((items, DIM), dtype=np.float32)
    index = DeviceIndex(vectors, device)
    return {
        f"batch_{count}_ms": milliseconds(lambda queries=vectors[:count]: index.search(queries, TOP), device, rounds=10)
        for count in (1, 32)
    }


def main() -> None:
    """Measure within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="qwen3-0.6b,llama-3.2-1b")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument(
        "--cpu", action="store_true", help="a tiny shape, to see that it runs; no figure means anything"
    )
    options = parser.parse_args()
    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --cpu shows that the program runs")
    device, dtype = ("cpu", torch.float32) if options.cpu else ("cuda", torch.bfloat16)
    end = time.perf_counter() + 60 * options.minutes
    rate = matrix_rate(device, dtype, 512 if options.cpu else 8192)
    result: dict[str, Any] = {
        "device": "cpu" if options.cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matrix_tflops": rate / 1e12,
        "forward": {},
        "search": {},
    }
    for name in ["tiny"] if options.cpu else options.shapes.split(","):
        result["forward"][name] = forward(name, device, dtype, rate, end)
    for items in (10_000,) if options.cpu else SEARCHED:
        if time.perf_counter() < end:
            result["search"][str(items)] = search(items, device)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
