"""The limit of a machine: the service's own forward and search in a loop, without HTTP, queue or waiting.

    python -m benchmarks.serving.bare_loop ARTIFACT [--precision bf16]

Reads one JSON object a line and answers with one; `benchmarks.serving.compare` starts it. `{"do": "vectors", "rows":
[...]}` returns user vectors of the plain forward in fp32, the reference of every comparison, with `"fast": true`
those of the forward that serves; `{"do": "policies"}` looks for the fastest batch size and number of threads; `{"do":
"run", ...}` runs one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modeling.cores import affinity_cores
from modeling.inference.encoder_forward import compile_encoder

if TYPE_CHECKING:
    from modeling.inference.int8_linear import Precision

K = 10
BATCHES = (1, 4, 8, 16)
WINDOW = 64  # requests among which those of one batch have similar lengths
SWITCH_S = 1e-4  # as in the service: a thread asks for Python's lock hundreds of times a forward


class Loop:
    """The service's model and index, in as many lanes as asked."""

    def __init__(self, artifact: Path, precision: Precision) -> None:
        from index import open_index
        from modeling.methods.dense import load_artifact

        self._plain: Any = load_artifact(artifact).encoder
        self._encoder: Any = load_artifact(artifact, precision=precision, verify=False).encoder
        if reason := compile_encoder(self._encoder):
            print(f"the plain forward, since {reason}", file=sys.stderr)
        self._index = open_index(artifact / "index")

    def vectors(self, rows: list[list[int]], fast: bool) -> list[list[float]]:
        """User vectors, one history at a time, and of the whole as one batch where it is fast."""
        encoder = self._encoder if fast else self._plain
        prompts = [encoder.prepare(each) for each in rows]
        groups = [prompts] if fast else [[prompt] for prompt in prompts]
        return [vector.tolist() for group in groups for vector in encoder.encode(group)]

    def forget_the_reference(self) -> None:
        """Give its memory back, so that what is measured afterwards is the served model."""
        self._plain = None

    def run(
        self, *, histories: list[list[int]], lanes: int, threads: int, batch: int, seconds: float
    ) -> dict[str, Any]:
        """Work for `seconds` in `lanes` threads of `threads` each; returns what came of it."""
        import torch

        torch.set_num_threads(threads)
        batches, lock = self._batches(histories, batch), threading.Lock()
        done: list[int] = []
        took: list[float] = []
        cpu, started = time.process_time(), time.monotonic()

        def lane() -> None:
            torch.set_num_threads(threads)
            while time.monotonic() - started < seconds:
                with lock:
                    chosen = next(batches)
                begun = time.monotonic()
                self._answer(chosen)
                took.append(time.monotonic() - begun)
                done.append(len(chosen))

        workers = [threading.Thread(target=lane) for _ in range(lanes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        wall = time.monotonic() - started
        return {
            "lanes": lanes,
            "threads": threads,
            "batch": batch,
            "per_s": sum(done) / wall,
            "cpu_ms": 1000 * (time.process_time() - cpu) / sum(done),
            "batch_ms_p50": 1000 * statistics.median(took),
        }

    def policies(self, histories: list[list[int]], seconds: float) -> dict[str, Any]:
        """Return the fastest way to be saturated and the fastest for a lone request, of all that were tried."""
        cores = affinity_cores()
        ways = {(1, 1), (1, cores), (cores, 1)}
        tried = [
            self.run(histories=histories, lanes=lanes, threads=threads, batch=batch, seconds=seconds)
            for (lanes, threads), batch in itertools.product(sorted(ways), BATCHES)
        ]
        alone = [way for way in tried if way["lanes"] == 1 and way["batch"] == 1]
        return {
            "saturated": max(tried, key=lambda way: way["per_s"]),
            "alone": min(alone, key=lambda way: way["batch_ms_p50"]),
            "tried": tried,
        }

    def _batches(self, histories: list[list[int]], batch: int) -> Iterator[list[list[int]]]:
        ordered: list[list[int]] = []
        for start in range(0, len(histories), WINDOW):
            window = histories[start : start + WINDOW]
            ordered += sorted(window, key=lambda rows: self._prompt(rows).length)
        cut = [ordered[start : start + batch] for start in range(0, len(ordered) - batch + 1, batch)]
        return itertools.cycle(cut)

    def _prompt(self, rows: list[int]) -> Any:
        """What the encoder reads of a history: its end, where it is long."""
        return self._encoder.prepare(rows[-self._encoder.history_limit :])

    def _answer(self, histories: list[list[int]]) -> None:
        import numpy as np

        user_BD = self._encoder.encode([self._prompt(rows) for rows in histories])
        self._index.search(user_BD, K, exclude=[np.asarray(rows) for rows in histories])


def main() -> None:
    """Answer line by line until the input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    options = parser.parse_args()
    from service.engine.cpu import few_heaps, set_library_defaults

    set_library_defaults()
    few_heaps()
    sys.setswitchinterval(SWITCH_S)
    loop = Loop(options.artifact, options.precision)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        work = ask.pop("do")
        if work == "vectors":
            answer: Any = loop.vectors(ask["rows"], ask.get("fast", False))
        elif work == "policies":
            loop.forget_the_reference()
            answer = loop.policies(**ask)
        else:
            answer = loop.run(**ask)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
