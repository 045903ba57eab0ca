"""Recommenders counted from interactions: popularity, first-order Markov transitions, and item-to-item similarity.

Similarity is that of the users who took two items (``item-knn``), or that of titles and of what stands near in
histories, added (``hybrid-knn``). All have the same form. The score of an item is its prior plus the weighted entries
of an N × N table, in the rows of the newest items of the history. There is no gradient training and no network. The
"user vector" names those items, and the index is the table (`index.tables.table`), so that they are served as
artifacts with item vectors are.

Shape legend: N items, E entries of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from index.tables.table import MOST_ITEMS, TableIndex
from modeling.artifact.folders import ArtifactError
from modeling.artifact.part_names import Part
from modeling.artifact.sizes import NUMBER, check_history, check_holds
from modeling.artifact.tensor_files import save_tensors
from modeling.artifact.verified import Files
from modeling.encoder.prompt import ID, FreeItem, Prompt
from modeling.encoder.user_encoder import CannotReadText
from modeling.inference.int8_linear import Precision
from modeling.methods.base import HistoryEncoder, LoadContext, Method, Record, VectorMethod

COUNTS = "counts.safetensors"
KINDS = {"prior_N": np.float64, "offsets_N1": np.int64, "columns_E": np.int32, "values_E": np.float32}
Rule = Literal["popularity", "markov", "item-knn", "hybrid-knn"]


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
    """The prior and the table, as buffers: their memory is counted and shared like the weights of other methods.

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


class CountsEncoder(HistoryEncoder):
    """Histories as queries of a table: the newest items, and no network.

    Args:
        table: that is asked.
    """

    exact = True

    def __init__(self, table: TableIndex) -> None:
        self._table = table

    @property
    def history_limit(self) -> int:
        """See `HistoryEncoder.history_limit`."""
        return self._table.dim - 1

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Raises `CannotReadText`."""
        raise CannotReadText("this model reads item ids only; leave out free titles")

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        """See `HistoryEncoder.prepare`: one position an item."""
        rows = np.array([item for item in history if not isinstance(item, FreeItem)], np.int64)[-self.history_limit :]
        return Prompt(np.full(len(rows), ID, np.int8), rows, np.arange(len(rows)))

    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """Queries [B, D], see `index.tables.table`."""
        return self._table.queries([prompt.values_T for prompt in prompts])

    def free_vectors(self, items: Sequence[FreeItem]) -> NDArray[np.float32]:
        """Raises `CannotReadText`."""
        raise CannotReadText("interactions are counted, and a title has none")


class CountsModel(VectorMethod):
    """Scores items by a table of counts or similarities.

    Args:
        table: see `CountsTable`.
        rule: what was counted.
        last, decay: see `CountsRecord`.
    """

    reads = ("ids",)

    def __init__(self, table: CountsTable, rule: Rule, *, last: int = 1, decay: float = 1.0) -> None:
        self.table, self.last, self.decay = table, last, decay
        self.rule: Rule = rule

    @property
    def networks(self) -> Mapping[Part, nn.Module]:
        """The table."""
        return {Part.WEIGHTS: self.table}

    @property
    def encoder(self) -> CountsEncoder:
        """See `VectorMethod.encoder`."""
        return CountsEncoder(self.index())

    @property
    def dim(self) -> int:
        """See `VectorMethod.dim`."""
        return self.last + 1

    def index(self) -> TableIndex:
        """See `VectorMethod.index`: over the arrays that the table has now, which several artifacts may share."""
        arrays = (self.table.prior_N, self.table.offsets_N1, self.table.columns_E, self.table.values_E)
        return TableIndex(*(each.numpy() for each in arrays), last=self.last, decay=self.decay)

    def all_scores(self, users_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `VectorMethod.all_scores`."""
        index = self.index()
        return np.stack([index.all_scores(user_D).astype(np.float32) for user_D in users_BD])

    def scores(self, rows: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float64]:
        """Scores of all items [N] for a history of catalog rows, oldest first; it may be empty."""
        index = self.index()
        return index.all_scores(index.queries([rows])[0])


class Counts(Method[CountsRecord]):
    """One file: the prior and the table, row by row."""

    kind, shape, Record = "counts", "vector", CountsRecord
    own_index = True

    def save(self, folder: Path, model: CountsModel) -> CountsRecord:
        """Write prior and table."""
        save_tensors(dict(model.table.named_buffers()), folder / COUNTS)
        return CountsRecord(rule=model.rule, last=model.last, decay=model.decay, entries=len(model.table.columns_E))

    def load(self, record: CountsRecord, context: LoadContext) -> CountsModel:
        """Raises `ArtifactError` for a table of another catalog, or one that `CountsTable` does not describe."""
        arrays, size, name = context.files.arrays(COUNTS), context.manifest.catalog_size, context.name
        entries = (record.entries,)
        expected = {"prior_N": (size,), "offsets_N1": (size + 1,), "columns_E": entries, "values_E": entries}
        found = {key: array.shape for key, array in arrays.items()}
        if found != expected:
            raise ArtifactError(f"{COUNTS} of {name} holds arrays of shapes {found}, and {expected} are expected")
        _check_table(arrays, size, record, f"{COUNTS} of {name}")
        if size > MOST_ITEMS:
            raise ArtifactError(f"{COUNTS} of {name} is a table of {size:,} items; at most {MOST_ITEMS:,} are allowed")
        table = CountsTable(arrays["prior_N"], arrays["offsets_N1"], arrays["columns_E"], arrays["values_E"])
        return CountsModel(table, record.rule, last=record.last, decay=record.decay)

    def check_sizes(self, files: Files, catalog_size: int, record: CountsRecord) -> None:
        """The entries, and the prior."""
        check_history(files, record.last)
        least = 2 * NUMBER * (record.entries + 2 * catalog_size)
        check_holds(files, COUNTS, f"{record.entries} entries for {catalog_size} items", least)

    def precisions(self, record: CountsRecord) -> tuple[Precision, ...]:
        """Nothing is computed by a network."""
        return ("fp32",)


def _check_table(arrays: Mapping[str, NDArray[Any]], size: int, record: CountsRecord, where: str) -> None:
    """Raise `ArtifactError` for arrays of the right shapes that are no table of ``size`` items."""
    for key, kind in KINDS.items():
        if arrays[key].dtype != kind:
            raise ArtifactError(f"{where} holds {key} as {arrays[key].dtype}; {np.dtype(kind)} is expected")
    offsets_N1, columns_E = arrays["offsets_N1"], arrays["columns_E"]
    rising = (offsets_N1[1:] >= offsets_N1[:-1]).all() and offsets_N1[0] == 0 and offsets_N1[-1] == record.entries
    inside = not len(columns_E) or (columns_E.min() >= 0 and columns_E.max() < size)
    if not rising or not inside:
        raise ArtifactError(f"{where} is no table of {size} items: its entries lie outside")
    if any_twice(offsets_N1, columns_E):
        raise ArtifactError(f"{where} is no table of {size} items: a row names an item twice")
    for key in ("prior_N", "values_E"):
        if (arrays[key] < 0).any():
            raise ArtifactError(f"{where} holds a number below 0 in {key}")
    largest = float(arrays["prior_N"].max(initial=0)) + record.last * float(arrays["values_E"].max(initial=0))
    if largest > float(np.finfo(np.float32).max):
        raise ArtifactError(f"{where} holds numbers whose sums, up to {largest:.1e}, do not fit float32")


def any_twice(offsets_N1: NDArray[np.int64], columns_E: NDArray[np.int32]) -> bool:
    """Whether a row names a column more than once; quick where the columns of each row ascend."""
    ascending = columns_E[1:] > columns_E[:-1]
    begins_N = offsets_N1[1:-1]
    ascending[begins_N[(begins_N > 0) & (begins_N < len(columns_E))] - 1] = True
    if ascending.all():
        return False
    rows_E = np.repeat(np.arange(len(offsets_N1) - 1), np.diff(offsets_N1))
    return len(np.unique(rows_E * len(offsets_N1) + columns_E)) < len(columns_E)


METHOD = Counts()
