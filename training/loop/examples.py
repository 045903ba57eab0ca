"""Training examples: each user's sequence once per epoch, with a target at every item boundary.

Long sequences are cut into windows whose cuts move from epoch to epoch, so that every target is seen once per epoch
and with different amounts of history. Windows of near-equal length share a batch, which keeps padding to a few
percent, and the batches of one epoch are a fixed number, so that steps per epoch do not depend on the cuts.

A model that reads a history in both directions can learn from its last item only: there each target is a window of its
own, with all the history it may have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from modeling.encoder.batch import Batch
from modeling.encoder.user_encoder import UserEncoder
from training.data import DataError


@dataclass(frozen=True)
class Window:
    """Item rows of a user, oldest first: inputs are ``rows[:-1]``, targets the last ``targets`` of ``rows[1:]``.

    Attributes:
        user: whose they are, in the order of the sequences.
        start: place of the first row in the user's sequence.
        draw: seed of whatever is drawn for this window in this epoch.
        last_only: whether the last row is the only target.
        earlier: the user's rows before ``start``, which the model does not read here.
    """

    rows: NDArray[np.int64]
    user: int = 0
    start: int = 0
    draw: int = 0
    last_only: bool = False
    earlier: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), compare=False)

    @property
    def targets(self) -> int:
        """Items with a loss."""
        return 1 if self.last_only else len(self.rows) - 1


def prefixes_of(sequence: Sequence[int] | NDArray[Any], limit: int, user: int = 0) -> list[Window]:
    """Each item but the first as the only target of its own window, with the ``limit`` items before it."""
    rows = np.asarray(sequence, np.int64)
    starts = [max(0, end - limit) for end in range(1, len(rows))]
    return [
        Window(rows[start : end + 1], user, start, last_only=True, earlier=rows[:start])
        for end, start in enumerate(starts, 1)
    ]


def windows_of(
    sequence: Sequence[int] | NDArray[Any], limit: int, rng: np.random.Generator, user: int = 0
) -> list[Window]:
    """Cut one sequence so that each item but the first is a target exactly once, with at most ``limit`` inputs."""
    rows = np.asarray(sequence, np.int64)
    targets = len(rows) - 1
    if targets < 1:
        return []
    if targets <= limit:
        return [Window(rows, user)]
    first = int(rng.integers(1, limit + 1))
    edges = [0, *range(first, targets, limit), targets]
    return [
        Window(rows[start : stop + 1], user, start, earlier=rows[:start]) for start, stop in itertools.pairwise(edges)
    ]


def target_shares(sequences: Sequence[NDArray[Any]], size: int, per_user: int | None = None) -> NDArray[np.float64]:
    """Expected share of each of ``size`` items among the targets of an epoch, [N]."""
    shares_N: NDArray[np.float64] = np.zeros(size)
    for rows in sequences:
        targets = np.asarray(rows, np.int64)[1:]
        kept = 1.0 if per_user is None else min(1.0, per_user / max(1, len(targets)))
        np.add.at(shares_N, targets, kept)
    shares_N /= max(float(shares_N.sum()), 1.0)
    return shares_N


class EpochWindows(Dataset[Window]):
    """All windows of one epoch; ``set_epoch`` cuts them anew, the same for the same seed and epoch.

    Args:
        sequences: item rows of every user, oldest first.
        limit: most inputs of a window.
        seed: of the cuts.
        last_only: one target a window (`prefixes_of`), the same windows in every epoch.
        per_user: at most so many of a user's windows, drawn anew in every epoch; None: all. With ``last_only`` only.
        fixed: the same windows in every epoch: those of the first.
        most: at most so many windows, drawn once from those of the first epoch; None: all. Then they are ``fixed`` too.
    """

    def __init__(
        self,
        sequences: Sequence[NDArray[Any]],
        *,
        limit: int,
        seed: int,
        last_only: bool = False,
        per_user: int | None = None,
        fixed: bool = False,
        most: int | None = None,
    ) -> None:
        self._sequences = sequences
        self._fixed, self._most = fixed or most is not None, most
        self._per_user = per_user
        self._limit = limit
        self._seed = seed
        self._last_only = last_only
        self._epoch = -1
        self.windows: list[Window] = []
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Cut the windows of ``epoch``."""
        same = self._fixed or (self._last_only and self._per_user is None)
        if epoch == self._epoch or (same and self.windows):
            return
        self._epoch = epoch
        rng, limit = np.random.default_rng([self._seed, epoch, 1]), self._limit
        cut = [window for user, rows in enumerate(self._sequences) for window in self._cut(rows, limit, user, rng)]
        if self._most is not None and len(cut) > self._most:
            cut = [cut[place] for place in np.sort(rng.choice(len(cut), self._most, replace=False))]
        draws = np.random.default_rng([self._seed, epoch, 5]).integers(2**62, size=len(cut)).tolist()
        self.windows = [replace(window, draw=draw) for window, draw in zip(cut, draws, strict=True)]
        if not self.windows:
            raise DataError("nothing to train on: no user has two items or more in the training part of the split")

    def _cut(self, rows: NDArray[Any], limit: int, user: int, rng: np.random.Generator) -> list[Window]:
        if not self._last_only:
            return windows_of(rows, limit, rng, user)
        found = prefixes_of(rows, limit, user)
        if self._per_user is None or len(found) <= self._per_user:
            return found
        return [found[place] for place in np.sort(rng.choice(len(found), self._per_user, replace=False))]

    def batches(self, positions: int) -> int:
        """Global batches of about ``positions`` targets that make one epoch: the same number in every epoch."""
        return max(1, round(sum(window.targets for window in self.windows) / positions))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Window:
        return self.windows[index]


class LengthBatches(Sampler[list[int]]):
    """Global batches of near-equal lengths holding about ``positions`` targets, in random order.

    With several processes each takes every ``world``-th window of the same global batch, so that the gradient,
    averaged over processes, is that of one process. ``item_lengths_N`` are the positions each item takes in a prompt
    (its title's tokens, say); without them every item counts one.
    """

    def __init__(
        self,
        windows: EpochWindows,
        *,
        positions: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        item_lengths_N: NDArray[np.int64] | None = None,
    ) -> None:
        self._windows = windows
        self._item_lengths_N = item_lengths_N
        self._seed = seed
        self._rank, self._world = rank, world
        self._epoch = 0
        self._count = windows.batches(positions)

    def set_epoch(self, epoch: int) -> None:
        """Use the windows and the order of ``epoch``."""
        self._epoch = epoch
        self._windows.set_epoch(epoch)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            yield batch[self._rank :: self._world]

    def global_batches(self) -> list[list[int]]:
        """Indices of every global batch of this epoch."""
        rng = np.random.default_rng([self._seed, self._epoch, 2])
        targets = np.asarray([window.targets for window in self._windows.windows])
        costs = np.asarray([len(window.rows) - 1 for window in self._windows.windows])
        if self._item_lengths_N is not None:
            costs = np.asarray([self._item_lengths_N[window.rows[:-1]].sum() for window in self._windows.windows])
        order = np.argsort(costs + rng.random(len(costs)), kind="stable")
        reached = np.cumsum(targets[order]) - targets[order] / 2
        group = np.minimum((reached / targets.sum() * self._count).astype(int), self._count - 1)
        batches = [order[group == number].tolist() for number in range(self._count)]
        batches = _none_too_small(batches, self._world)
        rng.shuffle(batches)
        return batches


def _none_too_small(batches: list[list[int]], least: int) -> list[list[int]]:
    """Every process needs a window in every batch: short batches borrow from the fullest."""
    for batch in batches:
        while len(batch) < least:
            fullest = max(batches, key=len)
            if len(fullest) <= least:
                raise ValueError("too few users for this many batches and processes: lower optimizer.positions' count")
            batch.append(fullest.pop())
    return batches


@dataclass(frozen=True)
class TrainingBatch:
    """Prompts with a target at each boundary, or at the last alone. ``P`` boundaries, flattened over the batch;
    ``recent_PR`` are the rows of the newest items read there, newest first, -1 where there are fewer; ``owners_P``
    whose sequences targets are of, and ``places_P`` where they stand in them; ``seen_S2`` pairs of a position and a
    row that its user has chosen before, the target excepted; None where they were not asked for."""

    prompts: Batch
    users_P: torch.Tensor
    boundaries_P: torch.Tensor
    recent_PR: torch.Tensor
    targets_P: torch.Tensor
    owners_P: torch.Tensor
    places_P: torch.Tensor
    seen_S2: torch.Tensor | None = None

    @property
    def count(self) -> int:
        """Targets that the loss is summed over."""
        return len(self.targets_P)


def collate(
    encoder: UserEncoder,
    windows: Sequence[Window],
    condition: Callable[[Window], NDArray[np.float32]] | None = None,
    *,
    with_seen: bool = False,
) -> TrainingBatch:
    """Windows to one padded batch; a window whose prompt lost its oldest items loses those targets with them.

    Args:
        encoder: prepares prompts.
        windows: of a batch.
        condition: what a gated adapter reads beside a window; it must not know the window's targets.
        with_seen: whether the loss leaves out what users have seen.
    """
    prompts = [
        encoder.prepare(window.rows[:-1].tolist(), None if condition is None else condition(window))
        for window in windows
    ]
    users, boundaries, recent, seen, owners, places = [], [], [], [], [], []
    targets: list[NDArray[np.int64]] = []
    steps_R = np.arange(encoder.recent_items)
    for number, (window, prompt) in enumerate(zip(windows, prompts, strict=True)):
        held = len(prompt.boundaries_M)
        kept = 1 if window.last_only else held
        users.append(np.full(kept, number))
        boundaries.append(prompt.boundaries_M[-kept:])
        read, places_PR = window.rows[-1 - held : -1], np.arange(held)[-kept:, None] - steps_R
        recent.append(np.where(places_PR >= 0, read[places_PR.clip(min=0)], -1))
        if with_seen:
            seen.append(seen_pairs(window, kept, sum(map(len, targets))))
        targets.append(window.rows[-kept:])
        owners.append(np.full(kept, window.user))
        places.append(window.start + np.arange(len(window.rows))[-kept:])
    users_P, boundaries_P, recent_PR, targets_P = (joined(part) for part in (users, boundaries, recent, targets))
    seen_S2 = joined(seen) if with_seen else None
    return TrainingBatch(
        encoder.collate(prompts), users_P, boundaries_P, recent_PR, targets_P, joined(owners), joined(places), seen_S2
    )


def joined(parts: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    """One tensor of all rows."""
    return torch.from_numpy(np.concatenate(parts))


def seen_pairs(window: Window, kept: int, start: int) -> NDArray[np.int64]:
    """Items chosen before each of the last ``kept`` targets of a window, also those that the model did not read:
    pairs of a position, counted from ``start``, and a row, [S, 2]. A target that was chosen before is not in them.
    """
    history = np.concatenate([window.earlier, window.rows[:-1]])
    known_P = len(history) - kept + 1 + np.arange(kept)
    before_PH = np.arange(len(history)) < known_P[:, None]
    positions_S, places_S = np.nonzero(before_PH & (history != window.rows[-kept:, None]))
    return np.stack([positions_S + start, history[places_S]], axis=1)


class EpochLoader(DataLoader[Window]):
    """A loader that passes the epoch on to its batches."""

    batches: LengthBatches

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer at the start of each epoch."""
        self.batches.set_epoch(epoch)
