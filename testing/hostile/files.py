"""Changes to the bytes of a file, whatever it holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from testing.hostile.changes import KINDS, kind, pick, seal


def changed_bytes(name: str, change: Callable[[bytearray, random.Random], Any]) -> None:
    def apply(folder: Path, rng: random.Random) -> None:
        path = pick(folder, rng, "*")
        data = bytearray(path.read_bytes())
        change(data, rng)
        path.write_bytes(data)
        seal(folder)

    KINDS[name] = apply


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 4, 64))):
        data[rng.randrange(min(len(data), rng.choice((64, 4096, 1 << 30))))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def zeros(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start : start + 64] = bytes(len(data[start : start + 64]))


def ones(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(min(len(data), 4096))
    data[start : start + 8] = b"\xff" * len(data[start : start + 8])


def insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.randrange(1, 33))


def turn(data: bytearray, rng: random.Random) -> None:
    middle = rng.randrange(len(data))
    data[:] = data[middle:] + data[:middle]


changed_bytes("bytes-flipped", flip)
changed_bytes("bytes-flipped-again", flip)
changed_bytes("bytes-cut", cut)
changed_bytes("bytes-zeroed", zeros)
changed_bytes("bytes-ones", ones)
changed_bytes("bytes-inserted", insert)
changed_bytes("bytes-turned", turn)
changed_bytes("bytes-none", lambda data, _: data.clear())
changed_bytes("bytes-noise", lambda data, rng: data.__setitem__(slice(None), rng.randbytes(min(len(data), 100_000))))
changed_bytes("bytes-tail", lambda data, rng: data.extend(rng.randbytes(4096)))


@kind
def files_swapped(folder: Path, rng: random.Random) -> None:
    one, other = pick(folder, rng, "*"), pick(folder, rng, "*")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    seal(folder)


@kind
def file_missing(folder: Path, rng: random.Random) -> None:
    pick(folder, rng, "*").unlink()
    seal(folder)
