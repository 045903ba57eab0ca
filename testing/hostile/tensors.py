"""Changes to safetensors files: headers that lie, numbers that are none."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from testing.hostile.changes import KINDS, Unfit, kind, pick, seal


def tensors(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_tensors(path: Path, header: Any, body: bytes, *, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


def header(name: str, change: Callable[[dict[str, Any], random.Random], Any]) -> None:
    """Change the entry of one tensor, or all of them."""

    def apply(folder: Path, rng: random.Random) -> None:
        path = pick(folder, rng, "*.safetensors")
        found, body = tensors(path)
        change(found, rng)
        write_tensors(path, found, body)
        seal(folder)

    KINDS[name] = apply


def _one(found: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    entry = found[rng.choice([name for name in found if name != "__metadata__"])]
    assert isinstance(entry, dict)
    return entry


def entry(**changes: Any) -> Callable[[dict[str, Any], random.Random], Any]:
    return lambda found, rng: _one(found, rng).update(changes)


header("tensor-overflow", entry(shape=[2**62, 2**62]))
header(
    "tensor-empty-huge", lambda found, _: found.update(x={"dtype": "F32", "shape": [2**59, 0], "data_offsets": [0, 0]})
)
header("tensor-offsets", entry(data_offsets=[0, 2**50]))
header("tensor-negative", entry(shape=[-1, 4]))
header("tensor-flat", lambda found, rng: (each := _one(found, rng)).update(shape=[int(np.prod(each["shape"]))]))
header("tensor-turned", lambda found, rng: (each := _one(found, rng)).update(shape=each["shape"][::-1]))
header(
    "tensor-integers",
    lambda found, rng: (each := _one(found, rng)).update(dtype={"F32": "I32", "I64": "F64"}.get(each["dtype"], "U8")),
)
header("tensor-no-type", entry(dtype="EVIL"))
header("tensor-float-shape", entry(shape=[1.5]))
header("tensor-many-axes", entry(shape=[1] * 1000))
header(
    "tensor-renamed",
    lambda found, rng: found.update(
        {"\u202e\x00" * 9: found.pop(rng.choice([n for n in found if n != "__metadata__"]))}
    ),
)
header("tensor-gone", lambda found, rng: found.pop(rng.choice([n for n in found if n != "__metadata__"])))
header(
    "tensor-many",
    lambda found, _: found.update(
        {f"n{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
    ),
)
header("tensor-metadata", lambda found, _: found.update(__metadata__={"x": "y" * 1_000_000}))


def header_text(name: str, text: Callable[[], bytes], length: int | None = None) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = pick(folder, rng, "*.safetensors")
        write_tensors(path, text(), b"\0" * 64, length=length)
        seal(folder)

    KINDS[name] = apply


header_text("header-length", lambda: b"{}", 2**63)
header_text("header-30-mb", lambda: b"{" + b" " * 30_000_000 + b"}")
header_text("header-90-mb", lambda: b"{" + b" " * 90_000_000 + b"}")
header_text("header-deep", lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000)
header_text("header-none", lambda: b"")


def numbers(name: str, value: float) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = pick(folder, rng, "*.safetensors")
        found, body = tensors(path)
        places = [each["data_offsets"] for n, each in found.items() if n != "__metadata__" and each["dtype"] == "F32"]
        if not places:
            raise Unfit(path.name)
        start, end = rng.choice(places)
        filled = np.full((end - start) // 4, value, np.float32).tobytes()
        write_tensors(path, found, body[:start] + filled + body[end:])
        seal(folder)

    KINDS[name] = apply


for name, value in (("nan", np.nan), ("inf", np.inf), ("huge", 3e38), ("zero", 0.0), ("tiny", 1e-42)):
    numbers(f"numbers-{name}", value)


@kind
def offsets_of_tokens(folder: Path, rng: random.Random) -> None:
    """Offsets of title tokens that are out of range or not ascending."""
    path = pick(folder, rng, "title_tokens.safetensors", "item_tokens.safetensors")
    found, body = tensors(path)
    each = found[rng.choice(["offsets", "tokens"])]
    start, end = each["data_offsets"]
    array = np.frombuffer(body[start:end], {"I64": np.int64, "I32": np.int32}[each["dtype"]]).copy()
    array[rng.randrange(len(array))] = rng.choice((-1, 2**31 - 1, 0, 10**6))
    write_tensors(path, found, body[:start] + array.tobytes() + body[end:])
    seal(folder)
