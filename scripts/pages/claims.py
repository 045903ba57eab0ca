"""The pages of claims: every claim of the project's design notes with its verdict, its figures and their commands.

`benchmarks/claims.json` has the claims in both languages. A figure in a text is a reference,
`{experiment|row|column}`: the row is the one whose cells hold all the given texts, which `&` separates. So no measured
number is written by hand.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.pages.results import ROOT, Experiment, Row
from scripts.pages.tables import cell, path

CLAIMS = ROOT / "benchmarks" / "claims.json"
REFERENCE = re.compile(r"\{([a-z0-9-]+)\|([^|{}]+)\|([^|{}]+)\}")
VERDICTS = ("holds", "partly", "no", "open")
WORDS = {
    "en": {
        "holds": "holds", "partly": "holds partly", "no": "does not hold", "open": "not measured yet",
        "command": "Command", "data": "Data", "verdict": "verdict", "claims": "claims",
    },
    "ja": {
        "holds": "成り立つ", "partly": "一部成り立つ", "no": "成り立たない", "open": "未測定",
        "command": "コマンド", "data": "データ", "verdict": "判定", "claims": "件数",
    },
}  # fmt: skip

Results = dict[str, Experiment]
Claim = dict[str, Any]


class ClaimError(ValueError):
    """A claim lacks a field, has a figure without a source, or refers to what is not there; the message says which."""


def read_claims(file: Path = CLAIMS) -> list[Claim]:
    """All claims in order; raises `ClaimError` for one that is settled without a figure, or open with one."""
    found: list[Claim] = json.loads(file.read_text(encoding="utf-8"))
    for claim in found:
        name = str(claim.get("en", claim))[:60]
        if set(claim) != {"topic", "en", "ja", "verdict", "figure"} or set(claim["topic"]) != {"en", "ja"}:
            raise ClaimError(f"claim {name!r}: the fields are {sorted(claim)}")
        if claim["verdict"] not in VERDICTS:
            raise ClaimError(f"claim {name!r}: the verdict {claim['verdict']!r} is not one of {VERDICTS}")
        references = {language: REFERENCE.findall(text) for language, text in claim["figure"].items()}
        if set(references) != set(WORDS) or (claim["verdict"] == "open") == all(references.values()):
            raise ClaimError(f"claim {name!r}: a verdict needs a figure in both languages, and an open one has none")
    return found


def page_block(language: str) -> Callable[[Results, Any], str]:
    """Function that makes the block of one language's page."""

    def block(results: Results, link: Any) -> str:
        words, claims = WORDS[language], read_claims()
        counts = Counter(claim["verdict"] for claim in claims)
        lines = [f"| {words['verdict']} | {words['claims']} |", "| --- | --: |"]
        lines += [f"| {words[verdict]} | {counts[verdict]} |" for verdict in VERDICTS]
        parts, topic = ["\n".join(lines)], None
        for number, claim in enumerate(claims, 1):
            if claim["topic"] != topic:
                topic = claim["topic"]
                parts.append(f"### {topic[language]}")
            parts.append(_claim(number, claim, language, results))
        return "\n\n".join(parts)

    return block


def _claim(number: int, claim: Claim, language: str, results: Results) -> str:
    words, text = WORDS[language], claim["figure"][language]
    used = list(dict.fromkeys(name for name, _, _ in REFERENCE.findall(text)))
    shown = REFERENCE.sub(lambda match: value(results, *match.groups()), text)
    lines = [f"**{number}. {claim[language]}** — *{words[claim['verdict']]}*", shown]
    for name in used:
        command = results[name]["command"]
        made = f"{words['command']}: `{command}`. " if command else ""
        lines.append(f"{made}{words['data']}: `{path(results[name])}`.")
    return "  \n".join(line for line in lines if line)


def value(results: Results, name: str, row: str, column: str) -> str:
    """The figure of a reference as text; raises `ClaimError` where there is not exactly one."""
    if name not in results or results[name]["status"] != "current":
        raise ClaimError(f"the experiment {name!r} is not there, or not current")
    experiment, wanted = results[name], {text.strip() for text in row.split("&")}
    rows = [each for each in experiment["rows"] if wanted <= _texts(each)]
    digits = {each["key"]: each["digits"] for each in experiment["columns"]}
    if len(rows) != 1 or rows[0].get(column) is None:
        raise ClaimError(f"{name}: {len(rows)} rows hold {sorted(wanted)}, or column {column!r} is empty")
    return cell(rows[0][column], digits[column])


def _texts(row: Row) -> set[str]:
    return {str(each) for each in row.values() if isinstance(each, (str, int))}


BLOCKS = {"claims": page_block("en"), "claims-ja": page_block("ja")}
