"""Overhead of the service per request: its model replaced by one that does nothing, against a bare FastAPI route.

    python -m benchmarks.engine.overhead [--rounds 5] [--seconds 5] [--set NAME=VALUE]

The bare route takes and returns the same pydantic models, behind the same uvicorn, event loop and HTTP parser, and does
nothing else. The service validates, looks up, queues, batches, searches an index, counts and answers, as always; only
its encoder is a no-op. Both are asked for distinct histories of about twenty items by the same clients, in alternating
rounds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from benchmarks.engine.overload import setting
from benchmarks.lib.process_tree import end_on_sigterm
from benchmarks.lib.results import ResultFile
from benchmarks.serving import load_runs as visits
from benchmarks.serving.contenders import OURS, Contender
from benchmarks.serving.report import show
from service.http.schemas import ArtifactName, RankedItem, RecommendAnswer, RecommendRequest

ITEMS = 2000
TARGET = 1.6

RESULT = ResultFile(__file__, __doc__)


def bare_route(port: int) -> None:
    """Serve a route that answers with ten items of the right form."""
    import uvicorn
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/recommend")
    async def recommend(ask: RecommendRequest) -> RecommendAnswer:
        ranked = [
            RankedItem(rank=1 + place, item_id=f"item-{place:04d}", title=f"Title {place}", score=0.5)
            for place in range(ask.k)
        ]
        name = ArtifactName(name="bare", version="0", recipe="none")
        return RecommendAnswer(
            request_id="0", items=ranked, artifact=name, timings_ms={"total": 0.1}, source="model", ignored_items=[],
            degraded=[],
        )  # fmt: skip

    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )


def no_op(port: int) -> None:
    """Serve with parts made in memory and an encoder that does nothing; settings come from the environment."""
    from service.engine.cpu import few_heaps, set_library_defaults

    set_library_defaults()
    few_heaps()
    from modeling.methods.dense import GoldenCase
    from service.http.server import serve
    from service.observability.logs import configure_logging
    from service.service import Service
    from service.settings import load_settings
    from testing.fake_parts import DIM, TableEncoder, make_parts, opener

    class Nothing(TableEncoder):
        def encode(self, prompts: Sequence[Any]) -> np.ndarray[Any, Any]:
            return np.ones((len(prompts), DIM), np.float32)

    made = make_parts(ITEMS)
    encoder = Nothing(cast(TableEncoder, made.encoder).table_ND, limit=50, reads_text=True)
    golden = []
    for case in made.golden:
        seen = np.array([made.catalog.row(item_id) for item_id in case.ids])
        _, (rows,) = made.index.search(np.ones((1, DIM), np.float32), 10, exclude=[seen])
        top = [made.catalog.item_ids[row] for row in rows]
        golden.append(GoldenCase(history=case.history, vector=[1.0] * DIM, top=top))
    parts = replace(made, encoder=encoder, golden=tuple(golden))
    settings = load_settings(artifacts=(Path("no-op"),), port=port)
    configure_logging(settings.log_level, settings.log_format)
    serve(Service(settings, open_artifact=opener(parts)))  # type: ignore[arg-type]


def contenders(given: Mapping[str, str]) -> list[Contender]:
    """Both of them."""
    command = [sys.executable, "-m", "benchmarks.engine.overhead", "--port", "{port}", "--serve"]
    settings = {**OURS, **given}
    variables = {f"ANYO_{name.upper()}": str(value) for name, value in settings.items()}
    return [Contender("bare route", [*command, "bare"]), Contender("no-op model", [*command, "no-op"], variables)]


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Load both in alternating rounds."""
    items = [f"item-{row:04d}" for row in range(ITEMS)]
    both = contenders(dict(options.given))
    cpu_ms: dict[str, list[float]] = {each.name: [] for each in both}
    idle: dict[str, list[float]] = {each.name: [] for each in both}
    for number in range(options.rounds):
        for contender in both if number % 2 == 0 else both[::-1]:
            with contender.start() as running:
                running.wait_ready(items[:20])
                asyncio.run(visits.warm_up(running, items, 1.0))
                row = asyncio.run(visits.closed(running, items, f"{number}", options.clients, options.seconds))
                show(console, contender.name, row)
                if set(row["statuses"]) != {"200"}:
                    raise SystemExit(f"{contender.name} answered with {row['statuses']}; no figures are printed")
                cpu_ms[contender.name].append(row["cpu_ms"])
                idle[contender.name].append(asyncio.run(visits.idle(running)))
    ratios = [ours / bare for bare, ours in zip(*cpu_ms.values(), strict=True)]
    return {
        "clients": options.clients,
        "cpu_ms": {name: round(statistics.median(values), 4) for name, values in cpu_ms.items()},
        "idle_cores": {name: round(statistics.median(values), 4) for name, values in idle.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
        "target": TARGET,
    }


def main() -> None:
    """Measure, or be one of the servers that are measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="given")
    parser.add_argument("--serve", choices=("bare", "no-op"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    RESULT.add_option(parser)
    options = parser.parse_args()
    if options.serve:
        {"bare": bare_route, "no-op": no_op}[options.serve](options.port)
        return
    end_on_sigterm()
    RESULT.publish(measure(options, Console(stderr=True)), options.result)


if __name__ == "__main__":
    main()
