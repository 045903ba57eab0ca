"""The results of all benchmarks: one JSON file an experiment, and the ledger of evaluations on test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
LEDGER = RESULTS / "test-ledger.jsonl"

FIELDS = frozenset(
    {
        "id", "title", "question", "protocol", "commit", "machine", "date", "command", "versions", "load",
        "status", "unit", "higher_is_better", "columns", "rows", "notes",
    }
)  # fmt: skip
STATUSES = frozenset({"current", "superseded", "withdrawn"})
LOADS = frozenset({"idle", "other work on the machine", None})
COLUMN_FIELDS = frozenset({"key", "title", "digits"})
METRICS = {"hr@10": "recall@10", "ndcg@10": "ndcg@10"}

Experiment = dict[str, Any]
Row = dict[str, Any]


class ResultError(ValueError):
    """A file of results does not follow the format; the message names the file and the field."""


def load_results(folder: Path = RESULTS, ledger: Path = LEDGER) -> dict[str, Experiment]:
    """Return all experiments by id, sorted; rows that name a line of the ledger carry its values.

    Raises ResultError for an unknown or missing field, an id that is not the file's name, or an id used twice.
    """
    entries = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    found: dict[str, Experiment] = {}
    for path in sorted(folder.glob("*/*.json")):
        experiment = json.loads(path.read_text(encoding="utf-8"))
        check(path, experiment)
        if experiment["id"] in found:
            raise ResultError(f"{path}: the id {experiment['id']!r} is used twice")
        experiment["file"] = path.relative_to(folder).as_posix()
        experiment["rows"] = [_with_ledger(path, row, entries) for row in experiment["rows"]]
        found[experiment["id"]] = experiment
    return found


def numbers(value: Any) -> Iterator[float]:
    """Yield every number in a JSON value, depth first."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield float(value)
    elif isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)


def check(path: Path, experiment: Experiment) -> None:
    """Raise ResultError unless an experiment follows the format."""
    if set(experiment) != FIELDS:
        wrong = sorted(set(experiment) ^ FIELDS)
        raise ResultError(f"{path}: missing or unknown fields {wrong}")
    if experiment["id"] != path.stem:
        raise ResultError(f"{path}: the id is {experiment['id']!r}, not the name of the file")
    if experiment["status"] not in STATUSES:
        raise ResultError(f"{path}: the status {experiment['status']!r} is not one of {sorted(STATUSES)}")
    if experiment["load"] not in LOADS:
        raise ResultError(f"{path}: the load is {experiment['load']!r}")
    keys = [column["key"] for column in experiment["columns"]]
    unknown = sorted({key for row in experiment["rows"] for key in row} - {*keys, "ledger"})
    if unknown or any(set(column) != COLUMN_FIELDS for column in experiment["columns"]):
        raise ResultError(f"{path}: columns do not describe {unknown or 'themselves'}")


def _with_ledger(path: Path, row: Row, entries: list[dict[str, Any]]) -> Row:
    """A row with the metrics, epochs and minutes of its line in the ledger; lines count from one."""
    if "ledger" not in row:
        return row
    entry = entries[row["ledger"] - 1]
    if row.get("data", entry["data"]) != entry["data"]:
        raise ResultError(f"{path}: line {row['ledger']} of the ledger is about {entry['data']}")
    result = entry["result"]
    from_ledger: Row = {key: result[metric] for key, metric in METRICS.items()}
    if result.get("epochs") is not None:
        from_ledger |= {"epochs": round(result["epochs"], 1), "minutes": round(result["seconds"] / 60, 1)}
    return {**from_ledger, **row}
