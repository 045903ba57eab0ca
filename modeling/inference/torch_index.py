"""Exact top-k by inner product on the device of the model: one matrix product and one selection.

On a GPU it avoids copying scores to the host; on a CPU the index of faiss is as fast and its memory is shared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from index.base import Eligible, FloatArray, RowArray, SearchError, VectorIndex, checked_vectors, in_order

LARGEST_SCORES = 1 << 28
"""Elements of one block of scores: 2^28 floats are 1 GiB."""


class TorchIndex(VectorIndex):
    """All item vectors on a device (see `index.base.VectorIndex` for the contract of `search`).

    Args:
        vectors_ND: item vectors; finite.
        device: where they are searched.

    Raises:
        SearchError: no vectors, or a value that is not finite.
    """

    def __init__(self, vectors_ND: npt.NDArray[np.float32], device: torch.device | str) -> None:
        self._vectors_ND = torch.from_numpy(checked_vectors(vectors_ND)).to(device)
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
    def nbytes(self) -> int:
        """Bytes of all vectors, on the device."""
        return self._vectors_ND.nbytes

    def vectors(self, rows_R: RowArray | None = None) -> FloatArray:
        """A copy of the item vectors, float32 [N, D], or of those of some rows, [R, D]."""
        chosen = self._vectors_ND
        if rows_R is not None:
            chosen = chosen[torch.from_numpy(self._checked_rows(rows_R, "rows")).to(chosen.device)]
        found: FloatArray = chosen.cpu().numpy().copy()
        return found

    @torch.inference_mode()
    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        """Rules rows out on the device, where their scores are."""
        with torch.cuda.stream(self._stream):  # None: where it is
            return self._in_blocks(queries_BD, k, among)

    def _in_blocks(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        closed_N = None
        if among.allowed is not None:
            closed_N = torch.ones(self.size, dtype=torch.bool, device=self._vectors_ND.device)
            closed_N[torch.from_numpy(among.allowed).to(closed_N.device)] = False
        scores_BK = np.full((len(queries_BD), k), -np.inf, np.float32)
        rows_BK = np.full((len(queries_BD), k), -1, np.int64)
        block = max(1, LARGEST_SCORES // self.size)
        for start in range(0, len(queries_BD), block):
            part = slice(start, start + block)
            given = torch.from_numpy(queries_BD[part]).to(self._vectors_ND)
            scores_BN = given @ self._vectors_ND.T
            if closed_N is not None:
                scores_BN[:, closed_N] = -torch.inf
            if among.exclude is not None:
                _close(scores_BN, among.exclude[part])
            scores, rows_found = self._best(scores_BN, min(k, self.size))
            scores_BK[part, : scores.shape[1]] = scores
            rows_BK[part, : scores.shape[1]] = np.where(np.isneginf(scores), -1, rows_found)
        return scores_BK, rows_BK

    def _best(self, scores_BN: Tensor, k: int) -> tuple[FloatArray, RowArray]:
        """The k best, equal scores by ascending row: asks for more until no tie crosses the cut, then sorts."""
        wide = min(k + 1, self.size)
        while True:
            scores_BW, rows_BW = scores_BN.topk(wide, dim=1)
            # both in one transfer: waiting for the device twice takes longer than the selection
            found = torch.stack([scores_BW.view(torch.int32), rows_BW.to(torch.int32)]).cpu().numpy()
            scores, rows = found[0].view(np.float32), found[1].astype(np.int64)
            if not (scores[:, 0] < np.inf).all():  # NaN and infinity come first
                raise SearchError("an inner product overflows float32; item vectors or queries are far too large")
            last_B, cut_B = scores[:, -1], scores[:, k - 1]
            if wide == self.size or bool(((cut_B > last_B) | np.isneginf(cut_B)).all()):
                return in_order(scores, rows, k)
            wide = min(2 * wide, self.size)


def _close(scores_BN: Tensor, exclude: Sequence[RowArray]) -> None:
    """Rule out the rows that each query excludes: one assignment for all of them."""
    places = np.repeat(np.arange(len(exclude)), [len(rows) for rows in exclude])
    both = torch.from_numpy(np.stack([places, np.concatenate(exclude)])).to(scores_BN.device)
    scores_BN[both[0], both[1]] = -torch.inf
