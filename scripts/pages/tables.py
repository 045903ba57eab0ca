"""Markdown tables of experiments: one value a cell, and under each table the command, commit and machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.pages.results import Experiment, Row

NOTHING = "–"
LOADS = {
    "idle": "nothing else running",
    "other work on the machine": "other programs running on the machine",
    None: "load not recorded",
}


def number(value: float, digits: int | None) -> str:
    """A number with a leading zero and a comma at thousands; `digits` after the point, else as many as it has."""
    if digits is not None:
        return f"{value:,.{digits}f}"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.10g}"


def cell(value: Any, digits: int | None) -> str:
    """The text of one cell: a number, an interval, a list, a verdict or a word."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "pass" if value else "**fail**"
    if isinstance(value, (int, float)):
        return number(value, digits)
    if isinstance(value, list):
        return ", ".join(cell(each, digits) for each in value)
    if isinstance(value, dict):
        text = number(value["value"], digits)
        if value.get("low") is not None:
            return f"{text} [{number(value['low'], digits)}, {number(value['high'], digits)}]"
        return f"{text} ± {number(value['plus_minus'], digits)}" if "plus_minus" in value else text
    return str(value)


def table(columns: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """A Markdown table; columns without any value are left out."""
    used = [column for column in columns if any(row.get(column["key"]) is not None for row in rows)]
    words = {column["key"] for column in used if any(isinstance(row.get(column["key"]), str) for row in rows)}
    lines = [
        "| " + " | ".join(column["title"] for column in used) + " |",
        "| " + " | ".join("---" if column["key"] in words else "--:" for column in used) + " |",
    ]
    for row in rows:
        lines.append("| " + " | ".join(cell(row.get(column["key"]), column["digits"]) for column in used) + " |")
    return "\n".join(lines)


def source(experiment: Experiment) -> str:
    """Source of a table as text: command, commit, date, machine, load, and the file of the data."""
    if not (experiment["command"] or experiment["commit"] or experiment["machine"]):
        return f"Not measured here. Data: `{path(experiment)}`."
    parts = [f"Command: `{experiment['command']}`." if experiment["command"] else "Command: not recorded."]
    parts.append(f"Commit: {experiment['commit'] or 'not recorded'}.")
    if experiment["date"]:
        parts.append(f"Date: {experiment['date']}.")
    parts.append(f"Machine: {machine(experiment)}; {LOADS[experiment['load']]}.")
    if experiment["versions"]:
        parts.append(f"Versions: {experiment['versions']}.")
    parts.append(f"Data: `{path(experiment)}`.")
    return " ".join(parts)


def machine(experiment: Experiment) -> str:
    """The processor or GPU as stated."""
    stated = experiment["machine"]
    if not stated:
        return "not recorded"
    cores = f", {stated['cores']} cores" if stated.get("cores") else ""
    return f"{stated['processor']}{cores}"


def path(experiment: Experiment) -> str:
    """The file of an experiment, from the root of the repository; no link, since the site holds `docs` only."""
    return f"benchmarks/results/{experiment['file']}"


def whole(experiment: Experiment) -> str:
    """A table with its title, protocol, source and notes."""
    parts = [f"### {experiment['title']}"]
    if experiment["protocol"]:
        parts.append(experiment["protocol"])
    parts += [table(experiment["columns"], experiment["rows"]), source(experiment)]
    if experiment["notes"]:
        parts.append("\n".join(f"- {note}" for note in experiment["notes"]))
    return "\n\n".join(parts)
