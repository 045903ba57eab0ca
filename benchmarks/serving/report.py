"""Summary of the rounds of `benchmarks.serving.compare`: medians, and the ratios that are quoted."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from benchmarks.serving.contenders import Contender
from modeling.cores import affinity_cores

LIMIT = "bare loop"
COMMON = "80 % of the best peer"  # the one rate that is offered to everybody who bears it


class Results:
    """Rows by system and load, one for each round."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, defaultdict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, name: str, load: str, row: dict[str, Any]) -> None:
        """Note what one visit gave."""
        self._rows[name][load].append(row)

    def medians(self, name: str) -> dict[str, dict[str, Any]]:
        """Return the median of every figure of a system, by load; counts and statuses are summed."""
        return {load: _middle(rows) for load, rows in self._rows[name].items()}

    def per_s(self, name: str, load: str) -> float:
        """Return the median of requests answered a second, 0 where that was not measured."""
        rows = self._rows[name].get(load, [])
        return statistics.median(row["per_s"] for row in rows) if rows else 0.0

    def capacity(self, name: str) -> float:
        """Return the most requests a second of any number of clients."""
        return max((self.per_s(name, load) for load in self._rows[name] if load.startswith("closed")), default=0.0)

    def line(self, name: str) -> list[tuple[float, float]]:
        """Return offered rates and the p99 at each, by rate."""
        rows = [row for load, row in self.medians(name).items() if load.startswith("offered")]
        return sorted((row["offered_per_s"], row["p99_ms"]) for row in rows if row["p99_ms"] is not None)


def table_rows(systems: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of a table of medians: one a system and load, with the names that the pages' plots read."""
    rows = []
    for system, loads in systems.items():
        for load, row in loads.items():
            kind, _, stated = load.partition(" ")
            named = {"rps": row.get("per_s"), "offered_rps": row.get("offered_per_s")}
            rest = {name: value for name, value in row.items() if name not in ("per_s", "offered_per_s")}
            clients = int(stated) if kind == "closed" else None
            rows.append({"system": system, "load": load, "clients": clients, **named, **rest})
    return rows


def _middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    middle: dict[str, Any] = {}
    for figure, first in rows[0].items():
        values = [row[figure] for row in rows if row[figure] is not None]
        if isinstance(first, dict):
            middle[figure] = dict(sum((Counter(value) for value in values), Counter()))
        elif figure == "requests":
            middle[figure] = sum(values)
        else:
            middle[figure] = _round(statistics.median(values)) if values else None
    if len(rows) > 1 and "per_s" in middle:
        middle["per_s_lowest"] = _round(min(row["per_s"] for row in rows))
        middle["per_s_highest"] = _round(max(row["per_s"] for row in rows))
    return middle


def report(results: Results, everyone: Sequence[Contender]) -> dict[str, Any]:
    """Return all medians, the ratios of the targets and the lines of the plot."""
    names = [each.name for each in everyone]
    return {
        "systems": {name: results.medians(name) for name in [LIMIT, *names]},
        "ratios": {name: _ratios(name, results, names) for name in names if name.startswith("anyo")},
        "lines": {name: line for name in names if (line := results.line(name))},
    }


def _ratios(name: str, results: Results, names: Sequence[str]) -> dict[str, Any]:
    """Ratios of one of our systems to the limit (whole, and less the cores that the clients take) and to each peer."""
    limit, medians = results.per_s(LIMIT, "saturated"), results.medians(name)
    loads = [load for load in medians if load.startswith("closed")]
    found: dict[str, Any] = {}
    if loads and limit:
        best = max(loads, key=lambda load: medians[load]["per_s"])
        found["of_limit"] = _round(medians[best]["per_s"] / limit)
        cores = affinity_cores()
        left = 1 - medians[best]["generator_cores"] / cores
        found["of_limit_less_generator"] = _round(medians[best]["per_s"] / (limit * left))
        found["cpu_of_limit"] = _round(medians[best]["cpu_ms"] / results.medians(LIMIT)["saturated"]["cpu_ms"])
        found["generator_cores"] = medians[best]["generator_cores"]
    peer_rows = {peer: results.medians(peer) for peer in names if not peer.startswith("anyo")}
    if (load := f"offered {COMMON}") in medians:
        some = {peer: rows[load] for peer, rows in peer_rows.items() if load in rows}
        found[load] = {"p50": _least(medians[load], some, "p50_ms"), "p99": _least(medians[load], some, "p99_ms")}
    for load in loads:
        peers = {peer: rows[load] for peer, rows in peer_rows.items()}
        for kind in ("documented", "tuned"):
            some = {peer: row for peer, row in peers.items() if peer.endswith(kind) and row["per_s"]}
            if not some:
                continue
            fastest = max(some, key=lambda peer: some[peer]["per_s"])
            found[f"{load}, {kind}"] = {
                "fastest": fastest,
                "per_s": _round(medians[load]["per_s"] / some[fastest]["per_s"]),
                "limit_per_s": _round(limit / some[fastest]["per_s"]) if limit else None,
                "p50": _least(medians[load], some, "p50_ms"),
                "p99": _least(medians[load], some, "p99_ms"),
            }
    return found


def _least(row: dict[str, Any], peers: dict[str, dict[str, Any]], figure: str) -> float | None:
    """Return a latency of ours over the lowest of the peers'."""
    lowest = min((peer[figure] for peer in peers.values() if peer[figure]), default=None)
    return _round(row[figure] / lowest) if lowest and row[figure] is not None else None


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def show(console: Console, what: str, row: dict[str, Any]) -> None:
    """Print one visit as a line for people."""
    bad = {status: count for status, count in row["statuses"].items() if status != "200"}
    console.print(
        f"{what}: {row['per_s']:.1f} a second, p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms, "
        f"{row['cpu_ms']:.1f} ms of CPU a request{f', other statuses {bad}' if bad else ''}",
        highlight=False,
    )
