"""Changes to the faiss file of an index."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from testing.hostile.changes import kind, pick, seal


@kind
def index_header(folder: Path, rng: random.Random) -> None:
    """Numbers in the head of a faiss file: dimension, vectors, metric, length of what follows."""
    path = pick(folder, rng, "index.faiss")
    data = bytearray(path.read_bytes())
    place = rng.choice((0, 4, 8, 16, 24, 32, 33, 37))
    size = 4 if place in (0, 4, 33) else 8
    data[place : place + size] = rng.choice((2**31 - 1, 2**30, 0, 10**6, 1)).to_bytes(size, "little")
    path.write_bytes(data)
    seal(folder)


@kind
def index_kind(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng, "index.faiss")
    path.write_bytes(rng.choice((b"IwFl", b"IHNf", b"IxPT", b"IxMp", b"IwPQ", b"IBxF")) + path.read_bytes()[4:])
    seal(folder)


@kind
def index_numbers(folder: Path, rng: random.Random) -> None:
    path = pick(folder, rng, "index.faiss")
    data = bytearray(path.read_bytes())
    value = rng.choice((np.nan, np.inf, 3e38))
    data[-4096:] = np.full(1024, value, np.float32).tobytes()
    path.write_bytes(data)
    seal(folder)
