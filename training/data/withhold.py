"""A data set in which some items are never trained on: what a title can still name can then be measured.

Items are withheld from every training sequence and stay in the catalog, with their titles, and as the targets that
`training.data.splits.leave_one_out` asks for.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from modeling.artifact.targets import check_target
from training.data.dataset import Dataset
from training.data.report import DataError
from training.data.splits import MIN_LENGTH

TARGETS = 2
"""The newest interactions of a user, which are asked for and not trained on."""


def withhold(dataset: Dataset, share: float, seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Choose items at random and drop their interactions from the training part.

    Args:
        dataset: U users, N items, R interactions.
        share: of the items, over 0 and under 1.
        seed: of the choice.

    Returns:
        Which items are withheld [N], and which interactions stay, ascending. Of a user of whom too little is left to be
        asked anything, all interactions with withheld items go: nothing of such a user is a target.

    Raises:
        DataError: a share that is not allowed, or one that withholds no item or all of them.
    """
    count = round(share * dataset.n_items)
    if not 0 < share < 1 or not 0 < count < dataset.n_items:
        raise DataError(
            f"share is {share:g}, which withholds {count} of {dataset.n_items} items; it is over 0 and under 1"
        )
    withheld_N = np.zeros(dataset.n_items, bool)
    withheld_N[np.random.default_rng([seed, 11]).choice(dataset.n_items, count, replace=False)] = True
    ends_R = np.repeat(dataset.offsets_U1[1:], dataset.lengths_U)
    target_R = np.arange(dataset.n_interactions) >= ends_R - TARGETS
    open_R = ~withheld_N[dataset.rows]
    users_R = np.repeat(np.arange(dataset.n_users), dataset.lengths_U)
    stays_R = open_R | target_R
    left_U = np.bincount(users_R[stays_R], minlength=dataset.n_users)
    stays_R &= open_R | (left_U >= MIN_LENGTH)[users_R]
    return withheld_N, np.flatnonzero(stays_R)


def write_withheld(dataset: Dataset, share: float, seed: int, folder: Path) -> int:
    """Write the data set without what `withhold` drops to a folder, in the format that is read; returns the number of
    items withheld. Raises DataError, and TargetError for a folder that holds something."""
    withheld_N, stays = withhold(dataset, share, seed)
    check_target(folder, kind="new")
    folder.mkdir(parents=True, exist_ok=True)
    users = np.repeat(np.array(dataset.user_ids, object), dataset.lengths_U)
    interactions = pl.DataFrame(
        {
            "user_id": users[stays].tolist(),
            "item_id": [dataset.item_ids[row] for row in dataset.rows[stays].tolist()],
            "timestamp": dataset.timestamps[stays],
        }
    ).hstack(dataset.columns[stays])
    dataset.items.write_ndjson(folder / "items.jsonl")
    (folder / "interactions.csv.gz").write_bytes(gzip.compress(interactions.write_csv().encode(), mtime=0))
    return int(withheld_N.sum())
