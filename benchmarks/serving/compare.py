"""Our service against other serving frameworks around the same weights, and against a bare loop without a server.

    python -m benchmarks.lib.small --data DIR --form titles --out artifacts/small-titles
    make peers
    python -m benchmarks.serving.compare artifacts/small-titles [--precision bf16] [--compressed ARTIFACT] \
        [--without ray]

Peers (`benchmarks/serving/peers/`) run a plain Hugging Face forward, the same projector and FAISS: `documented` as
their own documentation writes it, tokenizing each prompt, `tuned` with ready tokens and one single-threaded worker a
core. Each answer of every system is first held against scores computed apart from all of them; where one differs no
figure is printed. Histories are distinct, caches are off, nothing is refused. In each round every system is started,
warmed up and loaded by 1, 16 and 64 clients that ask all the time; then, with requests at the times of a Poisson
process, at 50, 80 and 95 % of its own capacity and at 80 % of the best peer's. The latencies of these count from when
a request was due. Medians of the rounds are reported, and the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.engine.overload import setting
from benchmarks.lib.agreement import (
    LEAST_COSINE,
    TOLERANCE,
    disagreement,
    lowest_cosine,
    read_items,
    refuse_unless_same,
)
from benchmarks.lib.plot import latency_plot
from benchmarks.lib.process_tree import ProcessTree, end_on_sigterm
from benchmarks.lib.results import ResultFile
from benchmarks.serving import load_runs as visits
from benchmarks.serving.contenders import PEERS, ROOT, VARIANTS, Contender, K, Running, ours, peer
from benchmarks.serving.export import export
from benchmarks.serving.report import COMMON, LIMIT, Results, report, show, table_rows
from modeling.cores import affinity_cores

CHECKED = 24  # histories that every system must answer alike, one by one and sixteen at once
LOOPED = 256  # different histories of the bare loop

RESULT = ResultFile(__file__, __doc__)


class Limit:
    """The bare loop in a process of its own, which sleeps while it is not asked."""

    def __init__(self, options: argparse.Namespace) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.serving.bare_loop",
            str(options.artifact),
            "--precision",
            options.precision,
        ]
        self.tree = ProcessTree(command, cwd=ROOT, variables={}, pipes=True)
        self.policies: dict[str, Any] = {}

    def __enter__(self) -> Limit:
        self._read()
        return self

    def __exit__(self, *error: object) -> None:
        self.tree.end()

    def ask(self, do: str, **given: Any) -> Any:
        """Let it do something and return what came of it."""
        assert self.tree.process.stdin is not None
        self.tree.process.stdin.write(json.dumps({"do": do, **given}) + "\n")
        self.tree.process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self.tree.process.stdout is not None
        if not (line := self.tree.process.stdout.readline()):
            raise SystemExit(f"the bare loop ended: {self.tree.log()}")
        return json.loads(line)


class Comparison:
    """The catalog that all systems share, and what is done with each of them."""

    def __init__(self, options: argparse.Namespace, folder: Path, console: Console) -> None:
        facts = json.loads((folder / "catalog.json").read_text())
        self.options, self.console = options, console
        self.row_of = {item_id: row for row, item_id in enumerate(facts["item_ids"])}
        self.items = [facts["item_ids"][row] for row in facts["usable"]]
        self.tokens = facts["tokens"]

    def take(self, count: int, seed: str) -> list[list[str]]:
        """Return some histories."""
        source = visits.histories(self.items, seed)
        return [next(source) for _ in range(count)]

    def rows(self, histories: Sequence[Sequence[str]]) -> list[list[int]]:
        """Return them as catalog rows."""
        return [[self.row_of[item_id] for item_id in history] for history in histories]

    def check(self, contenders: Sequence[Contender], limit: Limit, item_vectors_ND: np.ndarray[Any, Any]) -> None:
        """Stop unless all answer as the reference does, each request alone and many at once."""
        asked = self.take(CHECKED, "check")
        rows, tolerance = self.rows(asked), TOLERANCE[self.options.precision]
        user_BD = np.asarray(limit.ask("vectors", rows=rows), np.float32)
        fast_BD = np.asarray(limit.ask("vectors", rows=rows, fast=True), np.float32)
        scores_BN = user_BD @ item_vectors_ND.T
        cosine = lowest_cosine(fast_BD, user_BD)
        least = LEAST_COSINE if self.options.precision == "fp32" else 0.999
        differences = {LIMIT: [] if cosine >= least else [f"a user vector of cosine {cosine:.5f}"]}
        for contender in contenders:
            if not contender.compared:
                continue
            self.console.print(f"comparing the answers of {contender.name}")
            with contender.start() as running, ThreadPoolExecutor(16) as many:
                running.wait_ready(asked[0])
                answers = [running.ask(history) for history in asked] + list(many.map(running.ask, asked))
            differences[contender.name] = [
                disagreement(read_items(answer, self.row_of), scores_N, seen, K, tolerance)
                for answer, scores_N, seen in zip(answers, [*scores_BN, *scores_BN], rows + rows, strict=True)
            ]
        refuse_unless_same(differences)

    def visit(self, contender: Contender, work: Callable[[Running], Any]) -> Any:
        """Start a system, warm it up, do something with it, end it."""
        with contender.start() as running:
            running.wait_ready(self.take(1, "first")[0])
            asyncio.run(visits.warm_up(running, self.items, self.options.warm_up_seconds))
            return work(running)

    def closed_round(self, contender: Contender, number: int, results: Results) -> None:
        """Load one system with clients that ask all the time."""

        def work(running: Running) -> None:
            for clients in self.options.concurrency:
                seed = f"{self.options.seed} closed {number} {clients}"
                row = asyncio.run(visits.closed(running, self.items, seed, clients, self.options.seconds))
                results.add(contender.name, f"closed {clients}", row)
                show(self.console, f"round {number + 1}: {contender.name}, {clients} clients", row)
            memory = running.tree.memory_mib()
            results.add(contender.name, "rest", {**memory, "idle_cores": asyncio.run(visits.idle(running))})

        self.visit(contender, work)

    def offered_rounds(self, contender: Contender, rates: dict[str, float], number: int, results: Results) -> None:
        """Offer requests to one system at fixed rates."""

        def work(running: Running) -> None:
            for name, rate in rates.items():
                seed = f"{self.options.seed} offered {number} {name}"
                row = asyncio.run(visits.offered(running, self.items, seed, rate, self.options.open_seconds))
                results.add(contender.name, f"offered {name}", row)
                show(self.console, f"{contender.name}, {rate:.1f} a second ({name})", row)

        self.visit(contender, work)


def contenders_of(options: argparse.Namespace, folder: Path) -> list[Contender]:
    """Everyone that is measured; raises SystemExit where an environment is missing."""
    given = dict(options.given)
    found = [ours(options.artifact, options.precision, given)]
    if options.compressed is not None:
        other = ours(options.compressed, options.precision, given, name="anyo compressed")
        found.append(Contender(other.name, other.command, other.variables, compared=False))
    names = [name for name in PEERS if name not in options.without]
    found += [peer(name, variant, folder, options.precision) for name in names for variant in VARIANTS]
    return [each for each in found if not options.only or each.name in options.only]


def shares_of(name: str, results: Results, everyone: Sequence[Contender], shares: Sequence[float]) -> dict[str, float]:
    """Return the rates to offer to a system: shares of its capacity, and 80 % of the best peer's if it bears that."""
    capacity = results.capacity(name)
    rates = {f"{round(100 * share)} %": share * capacity for share in shares}
    peers = [results.capacity(each.name) for each in everyone if not each.name.startswith("anyo")]
    if peers and 0.8 * max(peers) < capacity:
        rates[COMMON] = 0.8 * max(peers)
    return rates


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Compare, then measure."""
    folder = Path("artifacts") / ".benchmarks" / f"peers-{options.artifact.name}"
    everyone = contenders_of(options, folder)
    export(options.artifact, folder)
    compare, results = Comparison(options, folder, console), Results()
    from safetensors.numpy import load_file

    vectors_ND = load_file(options.artifact / "item_vectors.safetensors")["vectors"]
    with Limit(options) as limit:
        compare.check(everyone, limit, vectors_ND)
        looped = compare.rows(compare.take(LOOPED, f"{options.seed} loop"))
        policies = limit.ask("policies", histories=looped, seconds=options.policy_seconds)
        for number in range(options.rounds):
            for load in ("saturated", "alone"):
                way = {name: policies[load][name] for name in ("lanes", "threads", "batch")}
                row = limit.ask("run", histories=looped, seconds=options.seconds, **way)
                results.add(LIMIT, load, row)
                console.print(f"round {number + 1}: {LIMIT}, {load}: {row['per_s']:.1f} requests a second")
            results.add(LIMIT, "rest", limit.tree.memory_mib())
            for contender in everyone if number % 2 == 0 else everyone[::-1]:
                compare.closed_round(contender, number, results)
    for number in range(options.open_rounds):
        for contender in everyone if number % 2 == 0 else everyone[::-1]:
            rates = shares_of(contender.name, results, everyone, options.shares)
            compare.offered_rounds(contender, rates, number, results)
    tokens = [sum(len(compare.tokens[row]) for row in rows) for rows in looped]
    return {
        "machine": {"cores": affinity_cores(), "processor": platform.machine(), "torch": version("torch")},
        "load_average": os.getloadavg(),
        "environment": {
            name: os.environ[name] for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS") if name in os.environ
        },
        "artifact": options.artifact.name,
        "precision": options.precision,
        "settings": dict(options.given),
        "prompt_tokens": round(float(np.mean(tokens)), 1),
        "bare_loop_policies": policies,
        **report(results, everyone),
    }


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="of the title form, made by benchmarks.lib.small")
    parser.add_argument("--compressed", type=Path, help="an artifact of the same catalog; measured, not compared")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of every system")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one closed loop")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--open-rounds", type=int, default=1)
    parser.add_argument("--open-seconds", type=float, default=60.0, help="of one offered rate")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.8, 0.95], help="of capacity")
    parser.add_argument("--warm-up-seconds", type=float, default=5.0)
    parser.add_argument("--policy-seconds", type=float, default=4.0, help="of each way that the bare loop tries")
    parser.add_argument("--without", choices=PEERS, action="append", default=[], help="go on without this peer")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="e.g. anyo, 'fastapi tuned'")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=Path("artifacts/.benchmarks/serving.svg"))
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", dest="given")
    RESULT.add_option(parser)
    return parser.parse_args()


def main() -> None:
    """Run it."""
    options, console = parse(), Console(stderr=True)
    end_on_sigterm()
    result = measure(options, console)
    lines = result.pop("lines")
    if lines:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        title = f"p99 against load, {options.artifact.name}, {options.precision}"
        options.plot.write_text(latency_plot(title, lines))
        console.print(f"plot: {options.plot}")
    RESULT.publish(result, options.result, table_rows(result["systems"]))


if __name__ == "__main__":
    main()
