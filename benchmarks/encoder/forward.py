"""The forward that serves beside the plain one, and what a user who comes back costs; one process, no server.

    python -m benchmarks.encoder.forward ARTIFACT [--precision fp32|bf16|int8] [--instruction 32] [--rounds 9]

Every round encodes the same histories the plain way (padded batches, every layer at every position), the fast way, and
with their keys and values kept from one item ago; ways take turns, medians are quoted. Vectors are compared first. The
instruction is random tokens of the length asked for: only its length costs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.lib.results import ResultFile
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.encoder_forward import EncoderForward, compile_encoder
from modeling.inference.prefix_cache import PrefixCache
from modeling.methods.dense import load_artifact

ITEMS, BATCHES = 20, (1, 8)
ROOM = 8 << 30
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.999, "int8": 0.999}

RESULT = ResultFile(__file__, __doc__)


def milliseconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def compare(
    encoder: UserEncoder, uncompiled: UserEncoder, batch: int, rounds: int, least: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Milliseconds a batch of every way."""
    fast = encoder.fast
    assert isinstance(fast, EncoderForward)
    times: dict[str, list[float]] = {"plain": [], "fast": [], "returning": []}
    lengths, kept = [], []
    for number in range(rounds + 1):
        histories = [rng.integers(0, encoder.items.size, ITEMS).tolist() for _ in range(batch)]
        prompts = [encoder.prepare(history) for history in histories]
        states = PrefixCache(fast, ROOM)
        states.encode([encoder.prepare(history[:-1]) for history in histories])
        found: dict[str, Any] = {}

        def plain(prompts: Any = prompts, found: dict[str, Any] = found) -> None:
            with torch.inference_mode():
                found["plain"] = uncompiled(encoder.collate(prompts)).float().numpy()

        def quick(prompts: Any = prompts, found: dict[str, Any] = found) -> None:
            found["fast"] = encoder.encode(prompts)

        def returning(prompts: Any = prompts, found: dict[str, Any] = found, states: Any = states) -> None:
            found["returning"] = states.encode(prompts)

        taken = {"plain": milliseconds(plain), "fast": milliseconds(quick), "returning": milliseconds(returning)}
        for name in ("fast", "returning"):
            cosine = float((found["plain"] * found[name]).sum(1).min())
            if not cosine >= least:
                raise SystemExit(f"{name}: a vector has cosine {cosine:.5f} with the plain one; no times are printed")
        if number:
            lengths += [prompt.length for prompt in prompts]
            kept.append(states.bytes / 2 / batch)
            for name, value in taken.items():
                times[name].append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "batch": batch,
        "positions": round(statistics.mean(lengths), 1),
        **{f"{name}_ms": round(value, 2) for name, value in medians.items()},
        "plain_over_fast": round(medians["plain"] / medians["fast"], 2),
        "fast_over_returning": round(medians["fast"] / medians["returning"], 2),
        "kept_mib_a_user": round(statistics.mean(kept) / 2**20, 2),
    }


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--instruction", type=int, action="append", help="tokens before the history; repeatable")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    RESULT.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, rows = Console(stderr=True), []
    for tokens in options.instruction or (0, 32, 96):
        encoder, uncompiled = (load_artifact(options.artifact, precision=options.precision).encoder for _ in range(2))
        rng = np.random.default_rng(0)
        words: Any = encoder.backbone.get_input_embeddings()  # type: ignore[operator]
        encoder.prompts.prefix = rng.integers(0, words.num_embeddings, tokens)
        if reason := compile_encoder(encoder):
            raise SystemExit(f"{options.artifact.name} has no fast forward: {reason}")
        for batch in BATCHES:
            row = compare(encoder, uncompiled, batch, options.rounds, LEAST_COSINE[options.precision], rng)
            rows.append({"instruction": tokens, **row})
            console.print(rows[-1])
    RESULT.publish(
        {"artifact": options.artifact.name, "precision": options.precision, "rows": rows}, options.result, rows
    )


if __name__ == "__main__":
    main()
