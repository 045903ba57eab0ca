"""An artifact asked about a newer catalog than its own, to be ranked beside the update that was made of it.

Items of a history that it does not know are passed over, and items that it does not know are ranked behind all others.

Shape legend: B users, N items of the newer catalog, D item dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from index import FlatIndex
from modeling.encoder.prompt import FreeItem, Prompt
from modeling.methods.base import HistoryEncoder
from modeling.methods.dense import DenseModel

BEHIND = -1e4
"""Score that an unknown item has beside every user vector; those of known items are cosines or logits."""
LONGEST = 1 << 30


@dataclass(frozen=True)
class _Asked:
    """A history as the encoder reads it; None where it knows none of the items."""

    prompt: Prompt | None

    @property
    def length(self) -> int:
        """Positions."""
        return 1 if self.prompt is None else self.prompt.length


class AncestorEncoder:
    """Reads histories of the newer catalog's rows as a `HistoryEncoder` reads its own, without free titles.

    Args:
        encoder: of the artifact.
        rows_N: its row of each item, -1 for items that it does not know.
        dim: D.
    """

    exact = True
    history_limit = LONGEST
    """The artifact's own limit counts the items that it knows."""

    def __init__(self, encoder: HistoryEncoder, rows_N: NDArray[np.int64], dim: int) -> None:
        self._encoder, self._rows_N, self._dim = encoder, rows_N, dim

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        """The prompt of the known items of one history, oldest first."""
        known = known_rows(cast(Sequence[int], history), self._rows_N)[-self._encoder.history_limit :]
        return cast(Prompt, _Asked(self._encoder.prepare(known) if known else None))

    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """User vectors [B, D + 1], the last element 1; zeros before it where no item is known."""
        vectors_BD = np.zeros((len(prompts), self._dim + 1), np.float32)
        vectors_BD[:, -1] = 1
        asked = [cast(_Asked, prompt).prompt for prompt in prompts]
        if some := [number for number, prompt in enumerate(asked) if prompt is not None]:
            vectors_BD[some, :-1] = self._encoder.encode([cast(Prompt, asked[number]) for number in some])
        return vectors_BD


def known_rows(history: Sequence[int], rows_N: NDArray[np.int64]) -> list[int]:
    """A history in the artifact's own rows, without items that it does not know."""
    found = rows_N[np.asarray(history, np.int64)]
    return [int(row) for row in found[found >= 0]]


class Ancestor:
    """An older artifact in a comparison: its encoder, and its vectors for the items of the newer catalog [N, D + 1]."""

    def __init__(self, model: DenseModel, rows_N: NDArray[np.int64]) -> None:
        own_ND = model.item_vectors_ND
        reader = AncestorEncoder(model.encoder, rows_N, own_ND.shape[1])
        self.encoder = cast(HistoryEncoder, reader)  # a comparison has no free titles
        self.item_vectors_ND = np.zeros((len(rows_N), own_ND.shape[1] + 1), np.float32)
        self.item_vectors_ND[rows_N >= 0, :-1] = own_ND[rows_N[rows_N >= 0]]
        self.item_vectors_ND[rows_N < 0, -1] = BEHIND

    def index(self) -> FlatIndex:
        """See `modeling.methods.base.VectorMethod.index`."""
        return FlatIndex.build(self.item_vectors_ND)

    def all_scores(self, users_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `modeling.methods.base.VectorMethod.all_scores`."""
        found_BN: NDArray[np.float32] = users_BD @ self.item_vectors_ND.T
        return found_BN
