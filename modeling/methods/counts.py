"""Rankers counted from interactions: popularity, first-order Markov transitions, and item-to-item similarity.

All three have the same form. The score of an item is its prior plus the weighted entries of an N × N table, in the rows
of the newest items of the history. There is no gradient training and no network.

Shape legend: N items, E entries of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.golden import WrittenCase
from modeling.artifact.part_names import Part
from modeling.artifact.sizes import NUMBER, check_history, check_holds
from modeling.artifact.tensor_files import save_tensors
from modeling.artifact.verified import Files
from modeling.generation.api import ListQuery, Turn
from modeling.inference.int8_linear import Precision
from modeling.methods.base import LoadContext, Method, Record
from modeling.methods.base_ranking import Ranker, RankPrompt, best_rows

COUNTS = "counts.safetensors"
Rule = Literal["popularity", "markov", "item-knn"]


class CountsRecord(Record):
    """Manifest record of a `CountsModel`.

    Attributes:
        rule: kind of counts.
        last: number of newest items used.
        decay: weight of an item of the history relative to the item after it.
        entries: E.
    """

    rule: Rule
    last: int = Field(ge=1)
    decay: float = Field(gt=0, le=1)
    entries: int = Field(ge=0)


class CountsTable(nn.Module):
    """The prior and the table, as buffers: counted and shared like the weights of other methods.

    Args:
        prior_N: score of every item, whatever the history.
        offsets_N1: where the entries of each row of the table begin, [N + 1].
        columns_E: items that the entries stand for, distinct within a row.
        values_E: the entries.
    """

    prior_N: Tensor
    offsets_N1: Tensor
    columns_E: Tensor
    values_E: Tensor

    def __init__(
        self,
        prior_N: NDArray[np.float64],
        offsets_N1: NDArray[np.int64],
        columns_E: NDArray[np.int32],
        values_E: NDArray[np.float32],
    ) -> None:
        super().__init__()
        self.register_buffer("prior_N", torch.tensor(prior_N, dtype=torch.float64))
        self.register_buffer("offsets_N1", torch.tensor(offsets_N1, dtype=torch.int64))
        self.register_buffer("columns_E", torch.tensor(columns_E, dtype=torch.int32))
        self.register_buffer("values_E", torch.tensor(values_E, dtype=torch.float32))

    def row(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Columns and values of the entries of one row."""
        begin, end = self.offsets_N1[row : row + 2].tolist()
        return self.columns_E[begin:end].numpy(), self.values_E[begin:end].numpy()


class CountsModel(Ranker):
    """Ranks by a table of counts or similarities.

    Args:
        table: see `CountsTable`.
        rule: what was counted.
        last, decay: see `CountsRecord`.
    """

    def __init__(self, table: CountsTable, rule: Rule, *, last: int = 1, decay: float = 1.0) -> None:
        self.table, self.last, self.decay = table, last, decay
        self.rule: Rule = rule
        self.history_limit, self.catalog_size = last, len(table.prior_N)

    @property
    def networks(self) -> Mapping[Part, nn.Module]:
        """The table."""
        return {Part.WEIGHTS: self.table}

    def scores(self, rows: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float64]:
        """Scores of all items [N] for a history of catalog rows, oldest first; it may be empty."""
        scores_N: NDArray[np.float64] = self.table.prior_N.numpy().copy()
        for age, row in enumerate(reversed(rows[-self.last :])):
            columns_E, values_E = self.table.row(int(row))
            scores_N[columns_E] += self.decay**age * values_E.astype(np.float64)
        return scores_N

    def score(self, prompts: Sequence[RankPrompt], *, turn: Turn = nullcontext) -> list[NDArray[np.float32]]:
        """See `Ranker.score`."""
        with turn():
            return [
                self.scores([item for item in prompt.history if isinstance(item, int)])[
                    np.array(prompt.candidates, np.int64)
                ].astype(np.float32)
                for prompt in prompts
            ]

    def rank(
        self, rows: Sequence[int], wanted: ListQuery, *, turn: Turn = nullcontext
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`; all items are scored at once."""
        with turn():
            return best_rows(self.scores(rows).astype(np.float32), wanted)


class Counts(Method[CountsRecord]):
    """One file: the prior and the table, row by row."""

    kind, shape, Record, Case = "counts", "list", CountsRecord, WrittenCase

    def save(self, folder: Path, model: CountsModel) -> CountsRecord:
        """Write prior and table."""
        save_tensors(dict(model.table.named_buffers()), folder / COUNTS)
        return CountsRecord(rule=model.rule, last=model.last, decay=model.decay, entries=len(model.table.columns_E))

    def load(self, record: CountsRecord, context: LoadContext) -> CountsModel:
        """Raises `ArtifactError` for a table of another catalog, or one whose entries lie outside it."""
        arrays, size, name = context.files.arrays(COUNTS), context.manifest.catalog_size, context.name
        entries = (record.entries,)
        expected = {"prior_N": (size,), "offsets_N1": (size + 1,), "columns_E": entries, "values_E": entries}
        found = {key: array.shape for key, array in arrays.items()}
        if found != expected:
            raise ArtifactError(f"{COUNTS} of {name} holds arrays of shapes {found}, and {expected} are expected")
        offsets_N1, columns_E = arrays["offsets_N1"], arrays["columns_E"]
        rising = (np.diff(offsets_N1) >= 0).all() and offsets_N1[0] == 0 and offsets_N1[-1] == record.entries
        inside = not len(columns_E) or (columns_E.min() >= 0 and columns_E.max() < size)
        if not rising or not inside:
            raise ArtifactError(f"{COUNTS} of {name} is no table of {size} items: its entries lie outside")
        table = CountsTable(arrays["prior_N"], offsets_N1, columns_E, arrays["values_E"])
        return CountsModel(table, record.rule, last=record.last, decay=record.decay)

    def check_sizes(self, files: Files, catalog_size: int, record: CountsRecord) -> None:
        """The entries, and the prior."""
        check_history(files, record.last)
        least = 2 * NUMBER * (record.entries + 2 * catalog_size)
        check_holds(files, COUNTS, f"{record.entries} entries for {catalog_size} items", least)

    def precisions(self, record: CountsRecord) -> tuple[Precision, ...]:
        """Nothing is computed by a network."""
        return ("fp32",)


METHOD = Counts()
