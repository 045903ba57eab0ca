"""Exact top-k by inner product on the device of the forward: a product and a selection.

The contract is that of `index.base.VectorIndex` (which this package does not import): answers sorted by (-score, row),
excluded rows never, row -1 and score -inf where fewer than k rows are eligible. On a GPU it saves the way to the host
and back; on a CPU the FAISS index is as fast and shares its memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LARGEST_SCORES = 1 << 28
"""Elements of one block of scores: 2^28 floats are 1 GiB."""


class TorchIndex:
    """All item vectors on a device.

    Args:
        vectors_ND: what is searched; finite.
        device: where.

    Raises:
        ValueError: no vectors, or a value that is not finite.
    """

    def __init__(self, vectors_ND: npt.NDArray[np.float32], device: torch.device | str) -> None:
        if vectors_ND.ndim != 2 or 0 in vectors_ND.shape:
            raise ValueError(f"item vectors have shape {vectors_ND.shape}; an index needs [items, width], both over 0")
        if not np.isfinite(vectors_ND).all():
            raise ValueError("an item vector holds NaN or infinity; only finite values can be ranked")
        self._vectors_ND = torch.from_numpy(np.ascontiguousarray(vectors_ND, np.float32)).to(device)
        # a queue of its own, which goes first: the next batch's forward is not waited for
        self._stream = torch.cuda.Stream(device, priority=-1) if self._vectors_ND.is_cuda else None

    @property
    def size(self) -> int:
        """N, the number of item vectors."""
        return self._vectors_ND.shape[0]

    @property
    def dim(self) -> int:
        """D, the width of a vector."""
        return self._vectors_ND.shape[1]

    @property
    def vectors_ND(self) -> npt.NDArray[np.float32]:
        """A copy of the item vectors, float32 [N, D]."""
        found: npt.NDArray[np.float32] = self._vectors_ND.cpu().numpy().copy()
        return found

    @torch.inference_mode()
    def search(
        self,
        queries_BD: npt.NDArray[np.floating],
        k: int,
        exclude: Sequence[npt.NDArray[np.integer]] | None = None,
        allowed: npt.NDArray[np.integer] | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k best eligible rows of every query and their inner products, sorted by (-score, row).

        Raises:
            ValueError: k below 1, queries of another width or not finite, or a row outside the index.
        """
        with torch.cuda.stream(self._stream):  # None: where it is
            return self._search(self._checked(queries_BD, k, exclude), k, exclude, allowed)

    def _search(
        self,
        queries_BD: npt.NDArray[np.float32],
        k: int,
        exclude: Sequence[npt.NDArray[np.integer]] | None,
        allowed: npt.NDArray[np.integer] | None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        closed_N = None
        if allowed is not None:
            closed_N = torch.ones(self.size, dtype=torch.bool, device=self._vectors_ND.device)
            closed_N[torch.from_numpy(self._checked_rows(allowed, "allowed")).to(closed_N.device)] = False
        scores_BK = np.full((len(queries_BD), k), -np.inf, np.float32)
        rows_BK = np.full((len(queries_BD), k), -1, np.int64)
        block = max(1, LARGEST_SCORES // self.size)
        for start in range(0, len(queries_BD), block):
            part = slice(start, start + block)
            given = torch.from_numpy(queries_BD[part]).to(self._vectors_ND)
            scores_BN = given @ self._vectors_ND.T
            if closed_N is not None:
                scores_BN[:, closed_N] = -torch.inf
            if exclude is not None:
                self._close(scores_BN, exclude[part], start)
            scores, rows_found = self._best(scores_BN, min(k, self.size))
            scores_BK[part, : scores.shape[1]] = scores
            rows_BK[part, : scores.shape[1]] = np.where(np.isneginf(scores), -1, rows_found)
        return scores_BK, rows_BK

    def _close(self, scores_BN: Tensor, exclude: Sequence[npt.NDArray[np.integer]], first: int) -> None:
        """Rule out what each query excludes: one assignment for all of them."""
        rows = [self._checked_rows(each, f"exclude[{first + place}]") for place, each in enumerate(exclude)]
        places = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
        both = torch.from_numpy(np.stack([places, np.concatenate(rows)])).to(scores_BN.device)
        scores_BN[both[0], both[1]] = -torch.inf

    def _best(self, scores_BN: Tensor, k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The k best, equal scores by ascending row: asks for more until no tie crosses the cut, then sorts."""
        wide = min(k + 1, self.size)
        while True:
            scores_BW, rows_BW = scores_BN.topk(wide, dim=1)
            # both in one transfer: waiting for the device twice takes longer than the selection
            found = torch.stack([scores_BW.view(torch.int32), rows_BW.to(torch.int32)]).cpu().numpy()
            scores, rows = found[0].view(np.float32), found[1].astype(np.int64)
            last_B, cut_B = scores[:, -1], scores[:, k - 1]
            if wide == self.size or bool(((cut_B > last_B) | np.isneginf(cut_B)).all()):
                break
            wide = min(2 * wide, self.size)
        if bool((scores[:, 1:] < scores[:, :-1]).all()):  # no ties, as nearly always: in order already
            return scores[:, :k], rows[:, :k]
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _checked(
        self, queries_BD: npt.NDArray[np.floating], k: int, exclude: Sequence[npt.NDArray[np.integer]] | None
    ) -> npt.NDArray[np.float32]:
        if k < 1:
            raise ValueError(f"k is {k}; ask for 1 item or more")
        found = np.ascontiguousarray(queries_BD, np.float32)
        if found.ndim != 2 or found.shape[1] != self.dim:
            raise ValueError(f"queries have shape {found.shape}; this index takes [batch, {self.dim}]")
        if not np.isfinite(found).all():
            raise ValueError("a query holds NaN or infinity; it cannot rank anything")
        if exclude is not None and len(exclude) != len(found):
            raise ValueError(f"exclude holds {len(exclude)} lists for {len(found)} queries; give one per query")
        return found

    def _checked_rows(self, rows: npt.NDArray[np.integer], name: str) -> npt.NDArray[np.int64]:
        found = np.asarray(rows).astype(np.int64, copy=False).ravel()
        if found.size and (found.min() < 0 or found.max() >= self.size):
            odd = found[(found < 0) | (found >= self.size)][0]
            raise ValueError(f"{name} holds row {odd}; rows of this index run from 0 to {self.size - 1}")
        return found
