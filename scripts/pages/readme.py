"""The two tables of README.md and README.ja.md: quality with latency, and speed against other servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.pages.figures import FOLDER, latencies
from scripts.pages.readme_words import ENGLISH, JAPANESE
from scripts.pages.results import ROOT, Experiment
from scripts.pages.tables import NOTHING, cell, table

Results = dict[str, Experiment]
Link = Callable[[Path], str]

PAGES = ROOT / "docs" / "benchmarks"
DATA = ("amazon-beauty", "movietweetings-100k", "movielens-small")
METHODS = (
    "Popularity", "Item-kNN", "Hybrid kNN (titles + co-occurrence)", "SASRec", "SASRec + title embeddings",
    "anyo (MiniLM)", "GENRE", "TIGER",
)  # fmt: skip
SYSTEMS = ("anyo", "FastAPI tuned", "LitServe tuned", "BentoML tuned", "Ray Serve tuned", "bare loop")


def _half(value: dict[str, Any] | None) -> str:
    """A value with half of its interval."""
    if value is None:
        return NOTHING
    return cell({"value": value["value"], "plus_minus": (value["high"] - value["low"]) / 2}, 4)


def _quality(words: dict[str, Any]) -> Callable[[Results, Link], str]:
    def block(results: Results, link: Link) -> str:
        rows = results["quality-default-recipes"]["rows"]
        latency = latencies(results)
        columns = [("method", words["method"]), ("kind", words["kind"]), *((name, name) for name in DATA)]
        columns.append(("latency", words["latency"]))
        lines = []
        for method in METHODS:
            found = {row["data"]: row for row in rows if row["method"] == method}
            kind = next(iter(found.values()))["kind"]
            line = {"method": words["names"].get(method, method), "kind": words["types"].get(kind, kind)}
            line |= {name: _half(found[name]["ndcg@10"]) for name in DATA}
            lines.append(line | {"latency": cell(latency.get(method), None)})
        if len(lines) > 8:
            raise ValueError("README's table has at most eight rows")
        places = {"quality": link(PAGES / "quality.md"), "latency": link(PAGES / "dense-vs-generative.md")}
        parts = [words["head"], table([_column(*each) for each in columns], lines)]
        parts.append("\n".join(f"- {note.format(**places)}" for note in words["notes"]))
        parts.append(f"![{words['plot']}]({link(FOLDER / 'quality-latency.svg')})")
        return "\n\n".join(parts)

    return block


def _speed(words: dict[str, Any]) -> Callable[[Results, Link], str]:
    def block(results: Results, link: Link) -> str:
        keys = {"rps": "rps", "p50_ms": "p50", "p99_ms": "p99", "memory_mb": "memory"}
        columns = [_column("system", words["system"]), *(_column(key, words[word]) for key, word in keys.items())]
        found = {row["system"]: row for row in results["serving-tuned-peers-fp32"]["rows"] if row["clients"] == 16}
        rows = [found[name] | {"system": words["names"].get(name, name)} for name in SYSTEMS if name in found]
        return f"{words['speed'].format(serving=link(PAGES / 'serving.md'))}\n\n{table(columns, rows)}"

    return block


def _column(key: str, title: str) -> dict[str, Any]:
    return {"key": key, "title": title, "digits": None}


BLOCKS = {
    "readme-quality": _quality(ENGLISH),
    "readme-quality-ja": _quality(JAPANESE),
    "readme-speed": _speed(ENGLISH),
    "readme-speed-ja": _speed(JAPANESE),
}
