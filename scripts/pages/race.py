"""The headline of the race on one model: each rival's time as a multiple of the dense answer's, the fairest first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.pages.results import Experiment
from scripts.pages.tables import number

RACE = "race-smollm2"
RIVALS = (
    ("TIGER", "semantic-ID generation along a trie (TIGER, 20 beams)"),
    ("BIGRec, 4 beams", "title generation with grounding (BIGRec, 4 beams)"),
    ("Hugging Face `generate`, 4 beams", "Hugging Face `generate` with 4 beams on BIGRec's model"),
)
Results = dict[str, Experiment]


def headline(results: Results, link: Callable[[Path], str]) -> str:
    """A list of the ratios that were measured."""
    rows = {row["method"]: row for row in results[RACE]["rows"]}
    lines = []
    for name, words in RIVALS:
        row = rows.get(name, {})
        if row.get("over_titles") is None:
            continue
        line = f"- {words}: **{number(row['over_titles'], 2)}** times the latency of a dense answer that reads titles"
        if row.get("over_compressed") is not None:
            line += f", {number(row['over_compressed'], 1)} times that of one that reads one position an item"
        lines.append(f"{line}.")
    return "\n".join(lines)


BLOCKS = {"race-headline": headline}
