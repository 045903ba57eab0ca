"""A teacher's lists as they were exported: by user and position, so that no order of rows can misalign them.

A folder with ``teacher.json`` (what it was made from, and a hash of the keys) and ``teacher.safetensors``.

Shape legend: R rows, one a user and position; K items of a list; N items; C width of item vectors; D of user vectors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from modeling.artifact.tensor_files import save_arrays
from training.data.report import DataError

FACTS, ARRAYS = "teacher.json", "teacher.safetensors"


@dataclass(frozen=True)
class Teacher:
    """Lists of a teacher for the targets of a training part.

    Attributes:
        facts: artifact, recipe, data, split, order of ties and part that it was made from.
        users_R, positions_R: which user, by row of the data set, and which place of the target in the user's sequence.
        rows_RK: catalog rows, best first; -1 where a list is shorter.
        scores_RK: of these rows.
        items_NC: item vectors of the teacher; no rows where it has none.
        vectors_RD: user vectors; no columns where it has none.
    """

    facts: dict[str, Any]
    users_R: NDArray[np.int64]
    positions_R: NDArray[np.int64]
    rows_RK: NDArray[np.int64]
    scores_RK: NDArray[np.float32]
    items_NC: NDArray[np.float32]
    vectors_RD: NDArray[np.float32]

    def write(self, folder: Path) -> None:
        """Write to a new or empty folder."""
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: getattr(self, name) for name in _SHAPES}
        save_arrays(arrays, folder / ARRAYS)
        facts = {**self.facts, "keys_sha256": _hash(self.users_R, self.positions_R), "rows": len(self.users_R)}
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Teacher:
        """Raises `DataError`: no such export, or its keys are not those that it was written with."""
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            arrays = load_file(folder / ARRAYS)
        except (OSError, ValueError, SafetensorError) as error:
            raise DataError(f"{folder} is no teacher (`python -m training teacher` writes one): {error}") from error
        if set(arrays) != set(_SHAPES) or not isinstance(facts, dict):
            raise DataError(f"{folder}/{ARRAYS} holds {sorted(arrays)}, and {sorted(_SHAPES)} are expected")
        found = cls(facts, **arrays)
        lengths = {len(getattr(found, name)) for name, of_rows in _SHAPES.items() if of_rows}
        if len(lengths) > 1 or _hash(found.users_R, found.positions_R) != facts.get("keys_sha256"):
            raise DataError(f"{folder}: the users and positions are not those that the lists were written for")
        return found

    def shuffled(self, seed: int) -> Teacher:
        """The control: every list belongs to another row."""
        order = np.random.default_rng([seed, 7]).permutation(len(self.rows_RK))
        facts, keys = {**self.facts, "shuffled": True}, (self.users_R, self.positions_R)
        return Teacher(facts, *keys, self.rows_RK[order], self.scores_RK[order], self.items_NC, self.vectors_RD[order])


_SHAPES = {
    "users_R": True, "positions_R": True, "rows_RK": True, "scores_RK": True, "items_NC": False, "vectors_RD": True,
}  # fmt: skip
"""Arrays by name; whether they have R rows."""


class TeacherLists:
    """Looks lists up by user and position.

    Args:
        teacher: the lists.
        count: items of a list that are wanted.

    Raises:
        DataError: lists are shorter.
    """

    def __init__(self, teacher: Teacher, count: int) -> None:
        if teacher.rows_RK.shape[1] < count:
            raise DataError(
                f"the teacher's lists have {teacher.rows_RK.shape[1]} items, and {count} are wanted: export it with "
                f"--items {count}, or lower method.distillation.candidates"
            )
        keys_R = _keys(teacher.users_R, teacher.positions_R)
        order = np.argsort(keys_R)
        self._keys_R = keys_R[order]
        rows_RK, scores_RK = teacher.rows_RK[order, :count], teacher.scores_RK[order, :count]
        whole_R1 = (rows_RK >= 0).all(1, keepdims=True)  # a list that is too short counts as none
        self._rows_RK, self._scores_RK = np.where(whole_R1, rows_RK, -1), np.where(whole_R1, scores_RK, 0.0)

    def __call__(
        self, users_P: NDArray[np.int64], positions_P: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores [P, K]; rows are -1 where the teacher has no list."""
        keys_P = _keys(users_P, positions_P)
        places_P = np.searchsorted(self._keys_R, keys_P).clip(max=max(0, len(self._keys_R) - 1))
        known_P1 = (self._keys_R[places_P] == keys_P)[:, None]
        rows_PK = np.where(known_P1, self._rows_RK[places_P], -1)
        return rows_PK, np.where(known_P1, self._scores_RK[places_P], 0.0).astype(np.float32)


def _keys(users: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    found: NDArray[np.int64] = np.asarray(users, np.int64) * (1 << 32) + positions
    return found


def _hash(users_R: NDArray[np.int64], positions_R: NDArray[np.int64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(_keys(users_R, positions_R)).tobytes()).hexdigest()
