"""The service with passes that take as long as they took on a GPU: what everything around them costs there.

    python -m benchmarks.engine.paced ARTIFACT [--pass-ms 2.4 2.2] [--share 0.8] [--rounds 5] [--set NAME=VALUE]

All is real but the device: prompts, queue, batches, their numbers written for a recording, HTTP. A pass itself is a
sleep of the first number of milliseconds, and of the second for every thousand positions of the recording that holds
the batch; the defaults are a line through what `benchmarks.encoder.gpu` measured for Qwen3-0.6B on an H200. A search
sleeps too. Everybody is answered with the same items, so answers mean nothing. The batching core gets the same
arrivals on a virtual clock, with the same passes: what it takes is the least that an open loop can. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from benchmarks.engine.overload import setting
from benchmarks.lib.load import Pool, closed_loop, milliseconds, open_loop, percentile
from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server, recommendations
from benchmarks.serving.contenders import OURS
from benchmarks.serving.load_runs import PERCENTILES, figures

if TYPE_CHECKING:
    from service.artifacts.loading import AnyLoaded

MAX_TOKENS, MAX_REQUESTS, ITEMS, CLIENTS = 16384, 128, 20, 256
ALONE_S, SATURATED_S, SEARCH_S = 4.0, 8.0, 0.0003
PASS_MS, PASS_VARIABLE = (2.4, 2.2), "PACED_PASS_MS"
SETTINGS = {
    **OURS, "device": "cpu", "lanes": 1, "threads": 1, "max_batch_tokens": MAX_TOKENS,
    "max_batch_requests": MAX_REQUESTS, "max_queued_tokens": 2**26,
}  # fmt: skip

RESULT = ResultFile(__file__, __doc__)


def cost(pass_ms: tuple[float, float], positions: int) -> float:
    """Seconds of a pass over the recording that holds so many positions."""
    from modeling.inference.varlen import SIZES

    size = next(each for each in SIZES if each >= positions)
    return (pass_ms[0] + pass_ms[1] * size / 1000) / 1000


def serve(folder: Path, port: int, pass_ms: tuple[float, float]) -> None:
    """The server; settings come from the environment."""
    from service.engine.cpu import few_heaps, set_library_defaults

    set_library_defaults()
    few_heaps()
    import numpy as np
    import torch

    from index.base import Eligible
    from modeling.inference.torch_index import TorchIndex
    from modeling.inference.varlen import SIZES, VarlenForward
    from modeling.methods.dense import GoldenCase
    from service.artifacts.loading import LoadedArtifact, open_artifact
    from service.http.server import serve as run
    from service.observability.logs import configure_logging
    from service.recommend import dense as recommender
    from service.service import Service
    from service.settings import load_settings

    torch.set_num_threads(1)
    settings = load_settings(artifacts=(folder,), port=port)
    configure_logging(settings.log_level, settings.log_format)
    # a GPU's batches have no such end
    recommender.ENOUGH_POSITIONS.update(dict.fromkeys(recommender.ENOUGH_POSITIONS, settings.max_batch_tokens))

    def opens(folder: Path, device: str) -> AnyLoaded:
        parts = open_artifact(folder, device)
        assert isinstance(parts, LoadedArtifact)
        fast: Any = cast(Any, parts.encoder).fast
        vector_D = np.full(parts.index.dim, parts.index.dim**-0.5, np.float32)

        def pace(_: Callable[[], Any]) -> Callable[[], Any]:
            size = next(sizes)
            seconds = cost(pass_ms, size)
            found_RD = torch.from_numpy(np.tile(vector_D, (size, 1)))

            def run_again() -> Any:
                time.sleep(seconds)
                return found_RD

            return run_again

        fitting = [size for size in SIZES if size <= settings.max_batch_tokens]
        sizes = reversed(fitting)  # the largest is recorded first
        fast.packed = VarlenForward(fast, fitting, pace)
        fast.packed.record(settings.max_batch_tokens)
        top = list(parts.catalog.item_ids[:10])
        golden = [GoldenCase(history=case.history, vector=vector_D.tolist(), top=top) for case in parts.golden]
        nothing_ND = np.zeros((parts.index.size, parts.index.dim), np.float32)
        return replace(parts, golden=tuple(golden), index=PacedIndex(nothing_ND, "cpu"))

    class PacedIndex(TorchIndex):
        def _search(self, queries_BD: Any, k: int, among: Eligible) -> Any:
            exclude = among.exclude or []
            np.stack([np.repeat(np.arange(len(exclude)), [len(each) for each in exclude]), np.concatenate(exclude)])
            time.sleep(SEARCH_S)
            shape = len(queries_BD), k
            return np.broadcast_to(np.linspace(1, 0, k, dtype=np.float32), shape), np.broadcast_to(np.arange(k), shape)

    run(Service(settings, open_artifact=opens), lambda url: print(json.dumps({"ready": True, "url": url}), flush=True))


def simulated(positions: int, rate: float, seconds: float, seed: int, pass_ms: tuple[float, float]) -> list[float]:
    """Latencies of the batching core alone, ascending; every history has the mean number of positions."""
    from benchmarks.engine.simulation import Asked, arrivals_of
    from service.engine.batcher import Limits
    from testing.simulation import Costs, simulate

    arrivals = arrivals_of(seed, rate, seconds, itertools.repeat(Asked([], positions)))
    limits = Limits(MAX_TOKENS, MAX_REQUESTS, 2**30, packed=True)

    def seconds_of(tokens: int) -> float:
        return cost(pass_ms, tokens)

    return sorted(simulate(arrivals, limits, Costs(seconds_of, seconds_of)))


async def visit(server: Server, positions: int, number: int, options: argparse.Namespace) -> dict[str, Any]:
    """One alone, all that it takes, and a share of that offered."""
    pool, requests = Pool(server.url), recommendations(server, random.Random(number), lengths=(ITEMS, ITEMS))
    try:
        await closed_loop(pool, requests, clients=16, seconds=1.0)
        alone = await closed_loop(pool, requests, clients=1, seconds=ALONE_S)
        before = server.cpu_s()
        full = await closed_loop(pool, requests, clients=CLIENTS, seconds=SATURATED_S)
        saturated = figures(full, server.cpu_s() - before)
        rate = options.rate or options.share * saturated["per_s"]
        offered = await open_loop(pool, requests, rate=rate, seconds=options.seconds, rng=random.Random(number))
    finally:
        pool.close()
    for load in (alone, full, offered):
        if set(load.statuses()) != {"200"}:
            raise SystemExit(f"not every request was answered: {load.statuses()}")
    least = simulated(positions, rate, options.seconds, number, options.pass_ms)
    return {
        "alone_p50_ms": figures(alone, 0)["p50_ms"],
        "capacity_per_s": saturated["per_s"],
        "cpu_ms": saturated["cpu_ms"],
        "offered_per_s": rate,
        **{name: figures(offered, 0)[name] for name in PERCENTILES},
        **{f"simulated_{name}": milliseconds(percentile(least, share)) for name, share in PERCENTILES.items()},
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Visit a new server in every round."""
    from modeling.methods.dense import load_artifact

    prompts = load_artifact(options.artifact).encoder.prompts
    lengths = prompts.item_lengths
    positions = round(ITEMS * (len(prompts.slots) if lengths is None else float(lengths.mean())))
    rows = []
    for number in range(options.rounds):
        given = {**SETTINGS, **dict(options.given)}
        with Server(options.artifact, given, program="benchmarks.engine.paced") as server:
            rows.append(asyncio.run(visit(server, positions, number, options)))
            print(rows[-1], file=sys.stderr, flush=True)
    medians = {name: round(statistics.median(row[name] for row in rows), 3) for name in rows[0]}
    return {"positions": positions, "pass_ms": options.pass_ms, "medians": medians, "rounds": rows}


def main() -> None:
    """Measure, or be the server that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--pass-ms", type=float, nargs=2, default=PASS_MS, help="of any, and of a thousand positions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.8, help="of capacity that is offered")
    parser.add_argument("--rate", type=float, help="requests a second that are offered instead")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the open loop")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="given")
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    RESULT.add_option(parser)
    options = parser.parse_args()
    if options.json:
        base, thousand = json.loads(os.environ[PASS_VARIABLE])
        serve(options.artifact, options.port, (base, thousand))
        return
    os.environ[PASS_VARIABLE] = json.dumps(options.pass_ms)
    RESULT.publish(measure(options), options.result)


if __name__ == "__main__":
    main()
