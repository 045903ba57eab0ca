"""The forward of an artifact beside ONNX Runtime and OpenVINO on the same weights; one process, no server.

    pip install -c constraints.txt 'anyo[peers-cpu]'
    python -m benchmarks.encoder.peers ARTIFACT [--graphs DIR] [--items 50] [--rounds 5] [--write-only]

The backbone without lm_head is written as ONNX once (a minute; `--write-only` stops there) and read by both runtimes:
in fp32, in bf16 where the runtime has it, and in int8. ONNX Runtime's int8 is its dynamic quantisation; OpenVINO's is
the graph with static scales, by ONNX Runtime's quantiser over eight histories that are not timed (least and largest
value), since it runs the dynamic graph slower than fp32. Ours is timed in each precision that it serves, plain torch in
fp32. All are given histories as the service has them, and give user vectors: putting input vectors together and the
projector count. The same histories come in every round, so that what a runtime prepares for a length is prepared;
contenders take turns, and medians are quoted. Vectors are compared with ours in fp32 first. The last line is JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.encoder.forward import milliseconds
from benchmarks.encoder.peer_graph import (
    PaddedBody,
    Run,
    export_onnx,
    onnx_runtime,
    openvino,
    padded_inputs,
    quantise_dynamic,
    quantise_static,
)
from benchmarks.lib.agreement import lowest_cosine
from benchmarks.lib.results import ResultFile
from modeling.encoder.prompt import Prompt
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.encoder_forward import EncoderForward, compile_encoder
from modeling.inference.int8_linear import Precision
from modeling.methods.dense import load_artifact

BATCHES = (1, 8)
EXAMPLES = 8
REFERENCE = ("anyo", "fp32")
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99, "int8": 0.9}
"""Below it a contender computes something else: its cosine is printed, and it is not timed."""

Encode = Callable[[Sequence[Prompt]], NDArray[np.float32]]
Contender = tuple[str, str]
"""Runtime and precision."""

RESULT = ResultFile(__file__, __doc__)


def write_graphs(
    artifact: Path, encoder: UserEncoder, folder: Path, histories: Sequence[list[int]], console: Console
) -> None:
    """Write the graphs that ``folder`` lacks: plain, and quantised in both ways."""
    plain, dynamic, static = (folder / f"{name}.onnx" for name in ("fp32", "int8-dynamic", "int8-static"))
    folder.mkdir(parents=True, exist_ok=True)
    if not plain.exists():
        console.print("writing the backbone as ONNX")
        # not the compiled one's, whose weights may be in blocks
        export_onnx(PaddedBody(load_artifact(artifact).encoder.backbone), encoder.hidden_size, plain)
    if not dynamic.exists():
        quantise_dynamic(plain, dynamic)
    if not static.exists():
        fast = encoder.fast
        assert isinstance(fast, EncoderForward)
        examples = (padded_inputs(fast, [encoder.prepare(history)]) for history in histories)
        quantise_static(plain, static, examples)


def compiled(folder: Path, precision: Precision) -> UserEncoder:
    """Our encoder with its fast forward."""
    encoder = load_artifact(folder, precision=precision).encoder
    if reason := compile_encoder(encoder):
        raise SystemExit(f"{folder.name} has no fast forward in {precision}: {reason}")
    return encoder


def with_runtime(encoder: UserEncoder, run: Run) -> Encode:
    """User vectors by another runtime: input vectors and projector are ours."""
    fast = encoder.fast
    assert isinstance(fast, EncoderForward)

    @torch.inference_mode()
    def encode(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        states_BH = torch.from_numpy(run(padded_inputs(fast, prompts)))
        found: NDArray[np.float32] = encoder.finish(states_BH, encoder.recent(prompts), None).numpy()
        return found

    return encode


def plain_torch(encoder: UserEncoder) -> Encode:
    """The backbone as `transformers` runs it."""

    @torch.inference_mode()
    def encode(prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = encoder(encoder.collate(prompts)).float().numpy()
        return found

    return encode


def contenders(artifact: Path, graphs: Path, encoder: UserEncoder, threads: int) -> dict[Contender, Encode]:
    """All of them, the reference first."""
    plain = load_artifact(artifact).encoder
    found: dict[Contender, Encode] = {REFERENCE: encoder.encode, ("torch", "fp32"): plain_torch(plain)}
    for precision in get_args(Precision)[1:]:
        found["anyo", precision] = compiled(artifact, precision).encode
    runs = {
        ("onnxruntime", "fp32"): onnx_runtime(graphs / "fp32.onnx", threads),
        ("onnxruntime", "int8"): onnx_runtime(graphs / "int8-dynamic.onnx", threads),
        ("openvino", "fp32"): openvino(graphs / "fp32.onnx", threads, "f32"),
        ("openvino", "bf16"): openvino(graphs / "fp32.onnx", threads, "bf16"),
        ("openvino", "int8"): openvino(graphs / "int8-static.onnx", threads, "f32"),
    }
    return found | {name: with_runtime(encoder, run) for name, run in runs.items()}


def compare(ways: dict[Contender, Encode], prompts: list[Prompt], rounds: int) -> dict[Contender, dict[str, float]]:
    """Lowest cosine with the reference, and milliseconds a batch: of the clock, and of processor time, which other work
    on the machine lengthens less. Ratios are of processor time, paired by round, their medians: to our forward of the
    same precision, and to the runtime's own fp32; below 1 is faster."""
    vectors = {name: encode(prompts) for name, encode in ways.items()}
    cosines = {name: lowest_cosine(found, vectors[REFERENCE]) for name, found in vectors.items()}
    ways = {name: encode for name, encode in ways.items() if cosines[name] >= LEAST_COSINE[name[1]]}
    taken: dict[Contender, list[float]] = {name: [] for name in ways}
    clock: dict[Contender, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
        for name in order:
            started = time.process_time()
            clock[name].append(milliseconds(partial(ways[name], prompts)))
            taken[name].append(1000 * (time.process_time() - started))
    return {
        name: {
            "cosine": round(cosines[name], 5),
            "clock_ms": round(statistics.median(clock[name]), 1),
            "cpu_ms": round(statistics.median(values), 1),
            "least_cpu_ms": round(min(values), 1),
            "of_ours": round(
                statistics.median(a / b for a, b in zip(values, taken["anyo", name[1]], strict=True)), 3
            ),
            "of_fp32": round(
                statistics.median(a / b for a, b in zip(values, taken[name[0], "fp32"], strict=True)), 3
            ),
        }
        for name, values in taken.items()
    } | {name: {"cosine": round(cosine, 5)} for name, cosine in cosines.items() if name not in ways}  # fmt: skip


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--graphs", type=Path, help="where graphs are kept; next to the artifact if not given")
    parser.add_argument("--items", type=int, default=50, help="of a history")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write-only", action="store_true", help="write the graphs, time nothing")
    RESULT.add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console, rng = Console(stderr=True), np.random.default_rng(0)
    graphs = options.graphs or options.artifact.with_name(options.artifact.name + "-graphs")
    encoder = compiled(options.artifact, "fp32")
    examples, *batches = (
        [rng.integers(0, encoder.items.size, options.items).tolist() for _ in range(count)]
        for count in (EXAMPLES, *BATCHES)
    )
    write_graphs(options.artifact, encoder, graphs, examples, console)
    if options.write_only:
        return
    ways, rows = contenders(options.artifact, graphs, encoder, options.threads), list[dict[str, Any]]()
    for histories in batches:
        prompts = [encoder.prepare(history) for history in histories]
        lengths = [prompt.length for prompt in prompts]
        for (runtime, precision), row in compare(ways, prompts, options.rounds).items():
            rows.append({
                "batch": len(prompts), "positions": [min(lengths), max(lengths)], "runtime": runtime,
                "precision": precision, **row,
            })  # fmt: skip
            console.print(rows[-1])
    RESULT.publish({"artifact": options.artifact.name, "rounds": options.rounds, "rows": rows}, options.result, rows)


if __name__ == "__main__":
    main()
