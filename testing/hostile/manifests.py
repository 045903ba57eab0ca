"""Changes to ``manifest.json``: counts, names, the list of files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.hostile.changes import BLANK, KINDS, Unfit, raw_manifest, seal, write_sealed
from testing.hostile.texts import change_leaf


def manifest(name: str, change: Callable[[Any, random.Random], Any], *, hashes: bool = True) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        value = raw_manifest(folder)
        change(value, rng)
        if hashes:
            seal(folder, value)
        else:
            write_sealed(folder, value)

    KINDS[name] = apply


def put(*path: Any, value: Any) -> Callable[[Any, random.Random], Any]:
    """Set one field of a manifest; raises Unfit where it has no such field."""

    def change(found: Any, _: random.Random) -> None:
        for key in path[:-1]:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict) or path[-1] not in found:
            raise Unfit(".".join(map(str, path)))
        found[path[-1]] = value

    return change


def _without_files(value: Any, rng: random.Random) -> None:
    files = value.pop("files")
    change_leaf(value, rng)
    value["files"] = files


for number in range(8):
    manifest(f"manifest-value-{number}", _without_files)
for number, (path, value) in enumerate((
    (("catalog_size",), 2**40), (("catalog_size",), 10**6), (("dim",), 10**6), (("text_dim",), 10**6),
    (("model", "backbone", "width"), 2**20), (("model", "backbone", "depth"), 10**6),
    (("model", "backbone", "heads"), 10**6), (("model", "backbone", "feed_forward"), 10**9),
    (("model", "history", "limit"), 10**9), (("model", "history", "limit"), 99_999),
    (("model", "history", "vectors_per_item"), 10**6), (("model", "items", "dim"), 10**6),
    (("model", "adapter", "rank"), 10**6), (("model", "adapter", "targets"), "(a|a|aa)+$"),
    (("model", "projector", "recent"), 10**9), (("model", "backbone", "source"), "/etc"),
    (("model", "backbone", "source"), "attacker-org/weights"), (("backbone", "stored"), False),
    (("backbone", "layers"), 10**6), (("backbone", "vocabulary"), 2**31), (("temperature",), 0),
    (("instruction_tokens",), [1] * 1_000_000), (("instruction_tokens",), [-1, 2**40]), (("beams",), 10**6),
    (("max_new_tokens",), 10**9), (("history_limit",), 10**9), (("code_sizes",), [10**6] * 3), (("code_sizes",), []),
    (("user_buckets",), 10**9), (("end",), 10**6), (("end",), -5), (("title_limit",), 10**9), (("title_limit",), 0),
    (("choice", "candidates"), 10**6), (("tasks", "user_sizes"), [10**6] * 4), (("tasks", "ratings"), [1e308]),
    (("grounding", "popularity_exponent"), 1e308), (("grounding", "instruction"), "x" * 1_000_000),
    (("choice", "instruction"), "{history}" * 100_000), (("kind",), "other"), (("schema_version",), True),
)):  # fmt: skip
    manifest(f"manifest-field-{number}", put(*path, value=value))
manifest("manifest-ansi-name", put("name", value='\x1b[31mred\x1b[0m\nFAKE {"level":"error"}'))
manifest("manifest-label", put("recipe", value='x"} 1\nanyo_ready 0\nfake{a="'))
manifest("manifest-deep", lambda value, _: value["training"].update(deep=json.loads("[" * 900 + "]" * 900)))


def _listing(*names: str) -> Callable[[Any, random.Random], Any]:
    return lambda value, _: value["files"].update(dict.fromkeys(names, BLANK))


manifest("files-outside", _listing("../../etc/passwd"), hashes=False)
manifest("files-absolute", _listing("/etc/passwd"), hashes=False)
manifest("files-control", _listing("a\nb", "a\x00b", "a\x1b[2Jb"), hashes=False)
manifest("files-many", _listing(*(f"f{number}" for number in range(20_000))), hashes=False)
manifest("files-none", lambda value, _: value.update(files={}), hashes=False)


def text_of_manifest(name: str, change: Callable[[bytes], bytes]) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = folder / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    KINDS[name] = apply


text_of_manifest("manifest-list", lambda _: b"[1]")
text_of_manifest("manifest-empty", lambda _: b"")
text_of_manifest(
    "manifest-nesting",
    lambda data: data.replace(b'"training": {', b'"training": {"d": ' + b"[" * 99_999 + b"]" * 99_999 + b",", 1),
)
text_of_manifest("manifest-utf16", lambda data: data.decode().encode("utf-16"))
text_of_manifest("manifest-65-mb", lambda data: data + b" " * (65 << 20))
text_of_manifest(
    "manifest-numbers", lambda data: data.replace(b'"schema_version": ', b'"schema_version": ' + b"1" * 9000, 1)
)
