"""Splits: which interactions are trained on, and which one per user is asked for on validation and on test.

Both splits cut every user's sequence once from the front: a prefix is trained on, and a target is a
position whose history is everything of that user before it. `leave_one_out` is the protocol of most
published tables. It lets the training rows of one user lie later than the test row of another;
`global_time` does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.data.dataset import Dataset, Ints
from training.data.report import DataError

Part = Literal["validation", "test"]
FittedOn = Literal["train", "train+validation"]
MIN_LENGTH = 3  # one to train on, one to validate, one to test


@dataclass(frozen=True, eq=False)
class Targets:
    """T questions: after the first `positions_T[t]` items of user `users_T[t]`, which item came next?"""

    dataset: Dataset
    users_T: Ints
    positions_T: Ints

    def __len__(self) -> int:
        return len(self.users_T)

    @property
    def rows_T(self) -> Ints:
        """The item row asked for, per question."""
        rows: Ints = self.dataset.rows[self.dataset.offsets_U1[self.users_T] + self.positions_T].astype(np.int64)
        return rows

    def history(self, question: int) -> npt.NDArray[np.int32]:
        """Item rows before the target, oldest first (a view)."""
        start = self.dataset.offsets_U1[self.users_T[question]]
        return self.dataset.rows[start : start + self.positions_T[question]]

    def histories(self) -> Iterator[npt.NDArray[np.int32]]:
        """The history of every question, in order."""
        return (self.history(question) for question in range(len(self)))


@dataclass(frozen=True, eq=False)
class Split:
    """A data set cut into training prefixes (`train_lengths_U` items each), validation and test targets."""

    name: str
    dataset: Dataset
    train_lengths_U: Ints
    refit_lengths_U: Ints  # what "train+validation" means: everything up to before the test targets
    validation: Targets
    test: Targets

    def targets(self, part: Part) -> Targets:
        """The targets of one part."""
        if part not in ("validation", "test"):
            raise ValueError(f"part is {part!r}; a split has: validation, test")
        return self.validation if part == "validation" else self.test

    def train_row(self, user: int, fitted_on: FittedOn = "train") -> npt.NDArray[np.int32]:
        """The item rows of one user that may be trained on, oldest first (a view)."""
        start = self.dataset.offsets_U1[user]
        return self.dataset.rows[start : start + self._lengths(fitted_on)[user]]

    def train_rows(self, fitted_on: FittedOn = "train") -> list[Ints]:
        """The item rows of every user that may be trained on, oldest first (views of one copy)."""
        rows, lengths_U = self.dataset.rows.astype(np.int64), self._lengths(fitted_on)
        starts_U = self.dataset.offsets_U1[:-1]
        return [rows[start : start + length] for start, length in zip(starts_U, lengths_U, strict=True)]

    def sequences(self, fitted_on: FittedOn = "train") -> tuple[Ints, npt.NDArray[np.int32]]:
        """All training prefixes as one ragged array: `(offsets [U+1], rows)`; users without one are empty."""
        lengths_U = self._lengths(fitted_on)
        positions = np.arange(self.dataset.n_interactions) - np.repeat(
            self.dataset.offsets_U1[:-1], self.dataset.lengths_U
        )
        inside = positions < np.repeat(lengths_U, self.dataset.lengths_U)
        return np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64), self.dataset.rows[inside]

    def popularity(self, fitted_on: FittedOn = "train") -> Ints:
        """Interactions per item row [N], counted on the training part only (or on train+validation)."""
        _, rows = self.sequences(fitted_on)
        return np.bincount(rows, minlength=self.dataset.n_items).astype(np.int64)

    def _lengths(self, fitted_on: FittedOn) -> Ints:
        if fitted_on not in ("train", "train+validation"):
            raise ValueError(f"fitted_on is {fitted_on!r}; it is train or train+validation")
        return self.train_lengths_U if fitted_on == "train" else self.refit_lengths_U


def leave_one_out(dataset: Dataset) -> Split:
    """Per user: the last interaction is the test target, the second last the validation target, the rest training.

    The test history includes the validation item. Users with fewer than 3 interactions are trained on whole
    and asked nothing.
    """
    asked = dataset.lengths_U >= MIN_LENGTH
    if not asked.any():
        raise DataError(f"{dataset.name}: no user has {MIN_LENGTH} interactions, so there are no targets")
    users = np.flatnonzero(asked)
    lengths = dataset.lengths_U[users]
    return Split(
        name="leave-one-out",
        dataset=dataset,
        train_lengths_U=np.where(asked, dataset.lengths_U - 2, dataset.lengths_U),
        refit_lengths_U=np.where(asked, dataset.lengths_U - 1, dataset.lengths_U),
        validation=Targets(dataset, users, lengths - 2),
        test=Targets(dataset, users, lengths - 1),
    )


def global_time(dataset: Dataset, validation: float = 0.1, test: float = 0.1) -> Split:
    """Two moments in time for all users: before the first is training, then validation, then test.

    The moments are chosen so that `validation` and `test` are the shares of all interactions after them. A
    user's target in a part is the first interaction inside it, asked for where something lies before that
    part to read; the history is everything before the part, so no answer is based on anything later than
    the moment it is asked. Raises `DataError` where timestamps are positions, or where a part comes out
    empty.
    """
    if dataset.order_only:
        raise DataError(f"{dataset.name} has positions instead of times, so it cannot be split by global time")
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise DataError(f"validation is {validation} and test {test}; both are over 0 and together under 1")
    ordered = np.sort(dataset.timestamps)
    first = ordered[int(len(ordered) * (1 - validation - test))]
    second = ordered[int(len(ordered) * (1 - test))]
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths_U)
    before_first = np.bincount(users[dataset.timestamps < first], minlength=dataset.n_users)
    before_second = np.bincount(users[dataset.timestamps < second], minlength=dataset.n_users)
    asked_validation = np.flatnonzero((before_first > 0) & (before_second > before_first))
    asked_test = np.flatnonzero((before_second > 0) & (dataset.lengths_U > before_second))
    if not (len(asked_validation) and len(asked_test) and before_first.any()):
        raise DataError(f"{dataset.name}: a split by time at {first} and {second} leaves a part without targets")
    return Split(
        name=f"global-time {1 - validation - test:.2g}/{validation:.2g}/{test:.2g}",
        dataset=dataset,
        train_lengths_U=before_first,
        refit_lengths_U=before_second,
        validation=Targets(dataset, asked_validation, before_first[asked_validation]),
        test=Targets(dataset, asked_test, before_second[asked_test]),
    )
