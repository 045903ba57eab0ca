"""Changes to JSON: odd values in one place, texts that are hard to parse, golden cases."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.hostile.changes import KINDS, pick, seal

NUMBERS = (0, -1, 1, 7, 10**6, 2**31, 2**40, 2**63, 10**400, 1e308, -1e308, 0.5)
OTHERS: tuple[Any, ...] = (
    None,
    True,
    "",
    "x" * 100_000,
    "\x1b[31m\u202e\x00",
    "../../etc/passwd",
    [],
    {},
    [[]] * 50,
    ["x"] * 10_000,
)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, each in inner:
        found += _leaves(each, (*path, key))
    return found


def change_leaf(value: Any, rng: random.Random) -> None:
    """Put something odd in one place of a JSON value, or take the place away."""
    *above, last = rng.choice(_leaves(value))
    for key in above:
        value = value[key]
    choice = rng.randrange(8)
    if choice == 0:
        del value[last]
    elif choice < 5:
        value[last] = rng.choice(NUMBERS)
    else:
        value[last] = rng.choice(OTHERS)


def changed_json(name: str, *patterns: str) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = pick(folder, rng, *patterns)
        value = json.loads(path.read_text())
        for _ in range(rng.choice((1, 1, 2))):
            change_leaf(value, rng)
        path.write_text(json.dumps(value), encoding="utf-8")
        seal(folder)

    KINDS[name] = apply


for number in range(4):
    changed_json(f"config-value-{number}", "config.json", "generation_config.json")
changed_json("tokenizer-value", "tokenizer.json")
changed_json("tokenizer-config-value", "tokenizer_config.json", "special_tokens_map.json")
changed_json("adapter-value", "adapter_config.json")
changed_json("golden-value", "golden.json")
changed_json("index-value", "index.json")


def text_of_json(name: str, text: Callable[[], str], *patterns: str) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        pick(folder, rng, *patterns).write_text(text(), encoding="utf-8")
        seal(folder)

    KINDS[name] = apply


ANY_JSON = (
    "golden.json",
    "index.json",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "adapter_config.json",
)
text_of_json("json-deep-lists", lambda: "[" * 100_000 + "]" * 100_000, *ANY_JSON)
text_of_json("json-deep-objects", lambda: '{"a":' * 50_000 + "1" + "}" * 50_000, *ANY_JSON)
text_of_json("json-nan", lambda: "[NaN, Infinity]", *ANY_JSON)
text_of_json("json-long-number", lambda: '{"schema": ' + "9" * 100_000 + "}", *ANY_JSON)
text_of_json("json-empty-list", lambda: "[]", *ANY_JSON)
text_of_json("json-text", lambda: '"text"', *ANY_JSON)
text_of_json("json-large", lambda: "[" + "0," * 30_000_000 + "0]", "golden.json", "config.json")


def golden(name: str, change: Callable[[list[Any], random.Random], Any]) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = folder / "golden.json"
        cases = json.loads(path.read_text())
        change(cases, rng)
        path.write_text(json.dumps(cases), encoding="utf-8")
        seal(folder)

    KINDS[name] = apply


def each_case(**changes: Any) -> Callable[[list[Any], random.Random], Any]:
    return lambda cases, _: [case.update(changes) for case in cases]


golden("golden-no-history", each_case(history=[]))
golden("golden-unknown-items", each_case(history=["nobody", "nothing"]))
golden("golden-long-history", lambda cases, _: cases[0].update(history=cases[0]["history"][:1] * 1_000_000))
golden("golden-many", lambda cases, _: cases.extend(cases[:1] * 3000))
golden("golden-long-title", each_case(history=[{"title": "red lamp " * 500_000}]))
golden("golden-odd-title", each_case(history=[{"title": "\x00\ud7ff\u202e\x1b[2J"}]))
golden("golden-nan", each_case(vector=[float("nan")] * 8))
golden("golden-huge-vector", each_case(vector=[1e308] * 8))
golden("golden-wide-vector", each_case(vector=[0.0] * 100_000))
golden("golden-no-top", each_case(top=[]))
golden("golden-long-top", each_case(top=["x"] * 300_000))
