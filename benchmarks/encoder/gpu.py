"""The dense forward, the search, the generative way and the service on a GPU, on the shapes of small language models.

    python -m benchmarks.encoder.gpu [--shapes qwen3-0.6b,llama-3.2-1b] [--minutes 7] [--artifact DIR]

Weights are random, so what is answered is noise and what it costs is real. Needs Python, torch and transformers; no web
stack, no FAISS, no network. For each shape: the latency of one history of twenty titles, alone; positions a second of
full batches, their share of the matrix rate that this device was just measured to have in the same dtype, and the
kernels of a batch. Then exact top-100 over 1M and 10M items; for the first shape, texts of forced lengths written by
our beam search and by Hugging Face `generate`, beside the dense forward. Vectors of the fast forward are compared with
the plain one's first.

With an artifact (`python -m benchmarks.lib.small --shape qwen3-0.6b --form titles --no-text`) and the web stack, the
service too: one request after the other, at saturation, and with requests that arrive at random at 80 % of that.

Without a GPU, `--cpu` runs a tiny shape, to see that it runs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lib.results import ResultFile
from benchmarks.lib.shapes import SHAPES, config_of
from modeling.encoder.item_tower import ItemTower
from modeling.encoder.prompt import TOKEN, PromptBuilder, TitleTokens
from modeling.encoder.user_encoder import UserEncoder
from modeling.generation.beam_search import BeamSettings
from modeling.generation.factory import beam_search_for
from modeling.inference.encoder_forward import EncoderForward, compile_encoder
from modeling.inference.torch_index import TorchIndex
from modeling.spec import AdapterSpec, BackboneSpec, HistorySpec, ItemsSpec, ModelSpec

CATALOG, TITLE_TOKENS, ITEMS, INSTRUCTION, DIM = 10_000, 9, 20, 32, 128
POSITIONS = (2048, 8192, 32768)
TOP, SEARCHED = 100, (1_000_000, 10_000_000)
FORCED, BEAMS, NO_TOKEN = (8, 16, 32, 64), (1, 4), -1
ALONE_S, SATURATED_S, OFFERED_S, OFFERED, CLIENTS = 4.0, 8.0, 10.0, 0.8, 256

RESULT = ResultFile(__file__, __doc__)


def language_model(shape: str, device: str, dtype: torch.dtype) -> Any:
    """A causal language model that learned nothing."""
    import transformers

    config = config_of(shape, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def encoder_of(model: Any, vocabulary: int, device: str, rng: np.random.Generator) -> UserEncoder:
    """A user encoder over titles, with an instruction, around the model without its head."""
    spec = ModelSpec(
        history=HistorySpec(form="titles", limit=ITEMS, title_tokens=TITLE_TOKENS),
        backbone=BackboneSpec(source="random"), adapter=AdapterSpec(kind="none"),
        items=ItemsSpec(tower="id", dim=DIM),
    )  # fmt: skip
    tokens = rng.integers(0, vocabulary, CATALOG * TITLE_TOKENS).astype(np.int32)
    prompts = PromptBuilder(
        form="titles", vectors_per_item=1, catalog_size=CATALOG,
        prefix=rng.integers(0, vocabulary, INSTRUCTION).tolist(),
        titles=TitleTokens(np.arange(CATALOG + 1, dtype=np.int64) * TITLE_TOKENS, tokens),
        item_limit=ITEMS, position_limit=4096,
    )  # fmt: skip
    body, items = model.get_decoder(), ItemTower(spec.items, catalog_size=CATALOG)
    encoder = UserEncoder(spec, backbone=body, items=items, prompts=prompts, hidden_size=body.config.hidden_size)
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
    return sum(int(event.count) for event in seen.key_averages() if event.device_type.name == "CUDA")


def forward(encoder: UserEncoder, device: str, rate: float, end: float) -> dict[str, Any]:
    """Figures of one shape."""
    rng = np.random.default_rng(1)

    def prompts(count: int) -> list[Any]:
        return [encoder.prepare(rng.integers(0, CATALOG, ITEMS).tolist()) for _ in range(count)]

    one = prompts(1)
    found: dict[str, Any] = {"positions_of_one": one[0].length}
    found["alone_plain_ms"] = milliseconds(lambda: plain(encoder, one), device)
    if reason := compile_encoder(encoder):
        raise SystemExit(f"no fast forward: {reason}")
    fast = encoder.fast
    assert isinstance(fast, EncoderForward)
    found["difference_from_plain"] = fast.difference()
    found["alone_launched_ms"] = milliseconds(lambda: encoder.encode(one), device)
    found["kernels_of_one"] = kernels(lambda: encoder.encode(one), device)
    started = time.perf_counter()
    if reason := fast.record(max(POSITIONS)):
        raise SystemExit(f"no recorded launches: {reason}")
    found["recording_s"] = time.perf_counter() - started
    found["difference_recorded"] = fast.difference()
    found["alone_ms"] = milliseconds(lambda: encoder.encode(one), device, rounds=100)
    for positions in POSITIONS:
        if time.perf_counter() > end:
            break
        batch = prompts(max(1, positions // one[0].length))
        operations = read_operations(encoder, batch)
        ms = milliseconds(partial(encoder.encode, batch), device, rounds=7)
        found[f"batch_of_{positions}"] = {
            "requests": len(batch),
            "ms": ms,
            "requests_per_second": 1000 * len(batch) / ms,
            "share_of_matrix_rate": operations / (ms / 1000) / rate,
            "kernels": kernels(partial(encoder.encode, batch), device),
        }
    return found


def read_operations(encoder: UserEncoder, batch: list[Any]) -> float:
    """Floating-point operations that the fast forward of a batch needs: products with weights for what is not in the
    instruction, feed-forward and queries of the last layer for one position a row, and attention over what may be
    seen."""
    assert isinstance(encoder.fast, EncoderForward)
    config: Any = encoder.backbone.config
    width, heads = config.hidden_size, config.num_attention_heads
    dim = getattr(config, "head_dim", None) or width // heads
    queries, shared = heads * dim, config.num_key_value_heads * dim
    each = 2 * width * (2 * queries + 3 * config.intermediate_size)
    both, layers, prefix = 2 * width * 2 * shared, config.num_hidden_layers, encoder.fast.prefix
    total = 0.0
    for prompt in batch:
        read = prompt.length - prefix
        seen = read * prefix + read * (read + 1) / 2
        total += (layers - 1) * (read * (each + both) + 4 * queries * seen)
        total += read * both + each + 4 * queries * prompt.length
    return total


def plain(encoder: UserEncoder, prompts: list[Any]) -> None:
    """The plain forward."""
    with torch.inference_mode():
        encoder(encoder.collate(prompts)).cpu()


def search(items: int, device: str) -> dict[str, float]:
    """Exact top-k over random vectors."""
    torch.manual_seed(0)
    vectors = torch.randn(items, DIM, device=device).cpu().numpy()
    index = TorchIndex(vectors, device)
    return {
        f"batch_{count}_ms": milliseconds(partial(index.search, vectors[:count], TOP), device, rounds=50)
        for count in (1, 32)
    }


def generation(model: Any, encoder: UserEncoder, device: str, rounds: int, end: float) -> Iterator[dict[str, Any]]:
    """Milliseconds of a text of forced length: our search, Hugging Face's, and the dense forward, taking turns."""
    rng = np.random.default_rng(2)
    prefix = encoder.prompts.prefix.tolist()
    ours = beam_search_for(model, end_tokens=[NO_TOKEN], prefix=prefix)
    for beams, forced in itertools.product(BEAMS, FORCED):
        if time.perf_counter() > end:
            return
        times: dict[str, list[float]] = {"dense": [], "ours": [], "hugging_face": []}
        for number in range(rounds + 1):
            prompt = encoder.prepare(rng.integers(0, CATALOG, ITEMS).tolist())
            tokens = prompt.values_T[prompt.kinds_T == TOKEN][len(prefix) :].tolist()
            settings = BeamSettings(beams=beams, max_new_tokens=forced)
            works: dict[str, Callable[[], object]] = {
                "dense": lambda p=prompt: encoder.encode([p]),  # type: ignore[misc]
                "ours": lambda t=tokens, s=settings: ours.search([t], s),  # type: ignore[misc]
                "hugging_face": lambda t=tokens, b=beams, f=forced: hugging_face(model, [*prefix, *t], b, f, device),  # type: ignore[misc]
            }
            for name, work in works.items():
                started = time.perf_counter()
                work()
                if device != "cpu":
                    torch.cuda.synchronize()
                if number:
                    times[name].append(1000 * (time.perf_counter() - started))
        medians = {name: statistics.median(values) for name, values in times.items()}
        yield {
            "beams": beams, "tokens": forced, **{f"{name}_ms": round(value, 2) for name, value in medians.items()},
            "hugging_face_over_dense": round(medians["hugging_face"] / medians["dense"], 1),
            "hugging_face_over_ours": round(medians["hugging_face"] / medians["ours"], 2),
        }  # fmt: skip


def hugging_face(model: Any, prompt: list[int], beams: int, forced: int, device: str) -> None:
    """`generate` with the same beams and exactly so many tokens."""
    with torch.inference_mode():
        model.generate(
            input_ids=torch.tensor([prompt], device=device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
            num_beams=beams, do_sample=False, max_new_tokens=forced, min_new_tokens=forced, pad_token_id=0,
        )  # fmt: skip


def service(artifact: Path, device: str) -> dict[str, Any]:
    """The service over one artifact: latency alone, requests a second at saturation, latency at 80 % of that."""
    from benchmarks.lib.server import Server

    settings = {
        "device": device, "precision": "fp32" if device == "cpu" else "bf16", "user_cache_entries": 0,
        "max_batch_tokens": 16384, "max_batch_requests": 128, "max_queued_tokens": 2**26, "max_queue_seconds": 60,
    }  # fmt: skip
    started = time.perf_counter()
    with Server(artifact, settings) as server:
        server.wait_ready()
        return {"ready_s": time.perf_counter() - started, **asyncio.run(ask(server))}


async def ask(server: Any) -> dict[str, Any]:
    """The three loads, one after the other."""
    from benchmarks.lib.load import Load, Pool, closed_loop, open_loop, percentile
    from benchmarks.lib.load import milliseconds as in_ms
    from benchmarks.lib.server import recommendations

    def figures(load: Load) -> dict[str, Any]:
        seconds, generator = load.latencies(200), load.generator_cpu_s / load.seconds
        found = {f"p{p}_ms": in_ms(percentile(seconds, p / 100)) for p in (50, 95, 99)}
        return {**found, "statuses": load.statuses(), "generator_cores": round(generator, 2)}

    pool = Pool(server.url)
    requests = recommendations(server, random.Random(0), lengths=(ITEMS, ITEMS))
    try:
        alone = await closed_loop(pool, requests, clients=1, seconds=ALONE_S)
        full = await closed_loop(pool, requests, clients=CLIENTS, seconds=SATURATED_S)
        rate = len(full.latencies(200)) / full.seconds
        offered = await open_loop(pool, requests, rate=OFFERED * rate, seconds=OFFERED_S, rng=random.Random(1))
    finally:
        pool.close()
    return {
        "alone": figures(alone),
        "saturated": {"requests_per_second": rate, **figures(full)},
        "open": {"offered_per_second": OFFERED * rate, **figures(offered)},
    }


def main() -> None:
    """Measure within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="qwen3-0.6b,llama-3.2-1b")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--rounds", type=int, default=5, help="of texts of every length")
    parser.add_argument("--artifact", type=Path, help="serve this one as well; needs the web stack")
    parser.add_argument(
        "--cpu", action="store_true", help="a tiny shape, to see that it runs; no figure means anything"
    )
    RESULT.add_option(parser)
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
        "generation": [],
    }

    def add(part: str, name: str, found: Any) -> None:
        print(part, name, json.dumps(found), flush=True)
        if name:
            result[part][name] = found
        else:
            result[part].append(found)

    for items in (10_000,) if options.cpu else SEARCHED:
        add("search", str(items), search(items, device))
    for number, name in enumerate(["tiny"] if options.cpu else options.shapes.split(",")):
        if time.perf_counter() > end:
            break
        model = language_model(name, device, dtype)
        encoder = encoder_of(model, SHAPES[name]["vocab_size"], device, np.random.default_rng(0))
        add("forward", name, forward(encoder, device, rate, end))
        if not number and options.rounds:
            for row in generation(model, encoder, device, options.rounds, end):
                add("generation", "", row)
    if options.artifact:
        result["service"] = service(options.artifact, device)
    RESULT.publish(result, options.result)


if __name__ == "__main__":
    main()
