"""Plots of the documentation, drawn from the results as SVG files in `docs/figures`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from benchmarks.lib.plot import Dot, bar_plot, latency_plot, scatter_plot
from scripts.pages.race import RACE
from scripts.pages.results import ROOT, Experiment, Row

FOLDER = ROOT / "docs" / "figures"
Results = dict[str, Experiment]
Draw = Callable[[Results], str]


UNTIMED = ("SASRec + title embeddings", "SASRec", "Item-kNN")
DENSE = "anyo (dense)"  # latency was measured with one network size, whatever the backbone


def latencies(results: Results) -> dict[str, float]:
    """Milliseconds of one request by method of the quality table."""
    found = {row["method"]: row["total_ms"] for row in results["latency-by-method"]["rows"]}
    return {**found, "anyo (MiniLM)": found[DENSE]}


def figures(results: Results) -> dict[Path, str]:
    """The text of every figure by its path."""
    return {FOLDER / name: draw(results) for name, draw in DRAWN.items()}


def _rows(results: Results, data: str) -> list[Row]:
    return [row for row in results["quality-default-recipes"]["rows"] if row["data"] == data]


def _quality(data: str, name: str) -> Draw:
    def draw(results: Results) -> str:
        milliseconds = latencies(results)
        dots = [
            Dot(row["method"], milliseconds[row["method"]], value["value"], value["low"], value["high"])
            for row in _rows(results, data)
            if row["method"] in milliseconds and (value := row["ndcg@10"])
        ]
        rows = {row["method"]: row["ndcg@10"]["value"] for row in _rows(results, data)}
        levels = [(name, rows[name]) for name in UNTIMED]
        title = f"NDCG@10 on {name} (95 % interval) against latency of one request"
        return scatter_plot(title, "latency of one request (ms, logarithmic)", dots, levels)

    return draw


def _race(results: Results) -> str:
    rows = [row for row in results[RACE]["rows"] if row.get("ndcg@10") is not None]
    dots = [
        Dot(row["method"], row["total_ms"], *(row["ndcg@10"][key] for key in ("value", "low", "high"))) for row in rows
    ]
    title = "SmolLM2-135M on MovieLens small: NDCG@10 (95 % interval) against latency of one request"
    return scatter_plot(title, "latency of one request (ms, logarithmic)", dots)


def _p99(results: Results) -> str:
    lines: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in results["serving-open-loop-curve"]["rows"]:
        lines[row["system"]].append((row["offered_rps"], row["p99_ms"]))
    return latency_plot("p99 against offered load, title histories, fp32", lines)


def _throughput(experiment: str, clients: int, title: str) -> Draw:
    def draw(results: Results) -> str:
        rows = results[experiment]["rows"]
        return bar_plot(
            title, "requests/s", [(row["system"], row["rps"]) for row in rows if row.get("clients") == clients]
        )

    return draw


DRAWN = {
    "quality-latency.svg": _quality("amazon-beauty", "Amazon Beauty"),
    "quality-latency-movietweetings.svg": _quality("movietweetings-100k", "MovieTweetings-100k"),
    "race-smollm2.svg": _race,
    "serving.svg": _p99,
    "throughput-fp32.svg": _throughput(
        "serving-tuned-peers-fp32", 16, "Throughput with 16 clients, fp32, tuned servers"
    ),
    "throughput-bf16.svg": _throughput(
        "serving-documented-peers-bf16", 16, "Throughput with 16 clients, bf16, servers as documented"
    ),
}
