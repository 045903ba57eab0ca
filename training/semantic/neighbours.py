"""Nearest neighbours of items and of users by the texts of items, from the training part of a split alone.

An item that nobody chose in training is nobody's neighbour. A user's vector is the mean of the vectors of the newest
items of a history; every beginning of a training history is asked about, and the answers are other users with their
whole training history. So no list holds anything of validation or test, nor a user's own history.

Shape legend: N items, C width of a text vector, U users, S beginnings of histories, K neighbours, L items of a history.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from index import FlatIndex
from modeling.artifact.tensor_files import save_arrays
from training.data.report import DataError
from training.loop.budget import check_time
from training.objectives.contrastive import SemanticSpec

LAYOUT = 1
"""Part of what neighbours are kept under; to be raised when they are found otherwise."""
BLOCK = 4096
"""Beginnings that are searched at once, about."""
SMALL = 1e-12

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """Lists of neighbours, nearest first.

    Attributes:
        items_NK: rows of items; -1 for an item that nobody chose.
        users_SK: numbers of users, for the first 1, 2, … items of the first user's history (the whole excepted), then
            of the second's.
        starts_U: where the lists of a user begin.
        sha256: of all that decides them.
    """

    items_NK: Ints
    users_SK: Ints
    starts_U: Ints
    sha256: str

    def of_users(self, owners_B: Ints, lengths_B: Ints) -> Ints:
        """Users near the first ``lengths_B`` items of the histories of ``owners_B``, [B, K]."""
        found: Ints = self.users_SK[self.starts_U[owners_B] + lengths_B - 1]
        return found


def user_vectors(texts_NC: Floats, histories: Sequence[NDArray[Any]], newest: int) -> Floats:
    """Unit vectors [B, C]: the mean of the text vectors of the ``newest`` last items; zeros for an empty history."""
    found = np.zeros((len(histories), texts_NC.shape[1]), np.float32)
    for row, history in enumerate(histories):
        if len(history):
            found[row] = texts_NC[history[-newest:]].mean(0)
    return unit(found)


def unit(vectors_BC: NDArray[Any]) -> Floats:
    """Vectors of length one; zeros stay zeros."""
    lengths_B1 = np.linalg.norm(vectors_BC, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors_BC / np.maximum(lengths_B1, SMALL), np.float32)


def find_neighbours(
    texts_NC: Floats, histories: Sequence[Ints], spec: SemanticSpec, *, seed: int, folder: Path | None
) -> Neighbours:
    """Neighbours of all items and users: those that an earlier run left in ``folder``, else found now and left there.

    Args:
        texts_NC: unit vectors of the texts of items.
        histories: training rows of every user, oldest first.
        spec: how many, and whether at random.
        seed: of the random ones.
        folder: None: they are not kept.

    Raises:
        DataError: there are fewer than two users with a history, or than two items that were chosen.
        OutOfTime: the run's budget ended.
    """
    starts_U = np.cumsum([0, *(max(0, len(rows) - 1) for rows in histories)])[:-1].astype(np.int64)
    digest = _digest(texts_NC, histories, spec, seed)
    file = None if folder is None else folder / f"neighbours-{digest[:24]}.safetensors"
    if file is not None and file.is_file():
        held = load(file.read_bytes())
        return Neighbours(held["items"].astype(np.int64), held["users"].astype(np.int64), starts_U, digest)
    rng = np.random.default_rng([seed, 7])
    items_NK = _of_items(texts_NC, histories, spec, rng)
    users_SK = _of_users(texts_NC, histories, spec, rng)
    if file is not None:
        _keep({"items": items_NK.astype(np.int32), "users": users_SK.astype(np.int32)}, file)
    return Neighbours(items_NK, users_SK, starts_U, digest)


def _digest(texts_NC: Floats, histories: Sequence[Ints], spec: SemanticSpec, seed: int) -> str:
    """Hash of vectors, histories and settings; of the seed where it acts."""
    lengths = [len(rows) for rows in histories]
    decides = [LAYOUT, spec.count, spec.newest, seed if spec.random else None, texts_NC.shape, lengths]
    found = hashlib.sha256(json.dumps(decides).encode())
    found.update(np.ascontiguousarray(texts_NC, "<f4").tobytes())
    for rows in histories:
        found.update(np.ascontiguousarray(rows, "<i8").tobytes())
    return found.hexdigest()


def _of_items(texts_NC: Floats, histories: Sequence[Ints], spec: SemanticSpec, rng: np.random.Generator) -> Ints:
    chosen = np.unique(np.concatenate(histories))
    if len(chosen) < 2:
        raise DataError(f"method.semantic needs two items in training histories: there are {len(chosen)}")
    count = min(spec.count, len(chosen) - 1)
    own = np.arange(len(chosen))
    if spec.random:
        found = _at_random(own, len(chosen), count, rng)
    else:
        found = _nearest(FlatIndex.build(texts_NC[chosen]), texts_NC[chosen], own, count)
    items_NK = np.full((len(texts_NC), count), -1, np.int64)
    items_NK[chosen] = chosen[found]
    return items_NK


def _of_users(texts_NC: Floats, histories: Sequence[Ints], spec: SemanticSpec, rng: np.random.Generator) -> Ints:
    pool = np.asarray([user for user, rows in enumerate(histories) if len(rows)], np.int64)
    if len(pool) < 2:
        raise DataError(f"method.semantic needs two users with training histories: there are {len(pool)}")
    count = min(spec.count, len(pool) - 1)
    index = FlatIndex.build(user_vectors(texts_NC, [histories[user] for user in pool], spec.newest))
    found = []
    for own, vectors_BC in _beginnings(texts_NC, [histories[user] for user in pool], spec.newest):
        check_time("finding similar users")
        if spec.random:
            found.append(_at_random(own, len(pool), count, rng))
        else:
            found.append(_nearest(index, vectors_BC, own, count))
    users_SK: Ints = pool[np.concatenate(found)]
    return users_SK


def _beginnings(texts_NC: Floats, histories: Sequence[Ints], newest: int) -> Iterator[tuple[Ints, Floats]]:
    """Blocks of beginnings of histories, the whole ones excepted: whose they are, [B], and their vectors, [B, C]."""
    owners: list[Ints] = []
    vectors: list[Floats] = []
    held = 0
    for owner, rows in enumerate(histories):
        if len(rows) > 1:
            sums_LC = np.concatenate([np.zeros((1, texts_NC.shape[1])), texts_NC[rows].cumsum(0, np.float64)])
            ends = np.arange(1, len(rows))
            vectors.append(unit(sums_LC[ends] - sums_LC[np.maximum(ends - newest, 0)]))
            owners.append(np.full(len(ends), owner, np.int64))
            held += len(ends)
        if held >= BLOCK or (held and owner == len(histories) - 1):
            yield np.concatenate(owners), np.concatenate(vectors)
            owners, vectors, held = [], [], 0


def _nearest(index: FlatIndex, queries_BC: Floats, own_B: Ints, count: int) -> Ints:
    """The ``count`` nearest rows of every query, its own row left out."""
    _, rows_BK = index.search(queries_BC, count + 1)
    kept_BK = rows_BK != own_B[:, None]
    kept_BK[kept_BK.all(1), -1] = False  # its own row was not among the nearest
    found: Ints = rows_BK[kept_BK].reshape(len(own_B), count)
    return found


def _at_random(own_B: Ints, size: int, count: int, rng: np.random.Generator) -> Ints:
    """``count`` different rows for every query, none its own."""
    drawn_BK = np.stack([rng.choice(size - 1, count, replace=False) for _ in own_B])
    shifted: Ints = drawn_BK + (drawn_BK >= own_B[:, None])
    return shifted


def _keep(arrays: dict[str, NDArray[Any]], file: Path) -> None:
    """Write a file in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    work = file.with_name(f".{file.name}.writing-{os.getpid()}")
    try:
        save_arrays(arrays, work)
        work.replace(file)
    finally:
        work.unlink(missing_ok=True)
