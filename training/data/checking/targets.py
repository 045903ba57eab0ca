"""Targets that no ranking without seen items can hit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.data.dataset import Dataset


def repeated_last(dataset: Dataset) -> npt.NDArray[np.bool_]:
    """[U] whether the last item of a user stands in the user's sequence before; False for users without a second."""
    last_U = dataset.offsets_U1[1:] - 1
    users = np.repeat(np.arange(dataset.n_users), dataset.lengths_U)
    same = dataset.rows == dataset.rows[last_U][users]
    return np.bincount(users[same], minlength=dataset.n_users) > 1
