"""An index whose items change: an immutable main index, what was added since, and rows that are closed.

Rows of added items have numbers of their own above those of the main index; they are given by whoever adds them, rise
with every change and are never used twice, so that a row means the same item in every state of the index. Each state
is a value: a change makes a new one, and whoever searches an older one goes on undisturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from index.base import Eligible, FloatArray, ItemIndex, Keys, Mask, RowArray, SearchError, VectorIndex
from index.kinds.flat import FlatIndex

MOST_DELTA = 256
"""Added rows that are kept apart before they are merged, at least; also a sixteenth of those that were merged."""
NONE: RowArray = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Added:
    """Added rows by their keys, searched exactly.

    Attributes:
        rows: ascending [M].
        keys: [M, W].
        index: over them; None without any.
        open: rows that have not been closed since [M].
    """

    rows: RowArray
    keys: Keys
    index: ItemIndex | None
    open: Mask

    @classmethod
    def of(cls, main: ItemIndex, rows: RowArray, keys: Keys) -> Added:
        """All of them open; ``main`` is the index that they are added to."""
        return cls(rows, keys, _exact(main, keys) if len(rows) else None, np.ones(len(rows), bool))

    def closed(self, rows: Sequence[int]) -> Added:
        """Without some rows; those that it does not hold are passed over."""
        here = np.isin(self.rows, rows)
        return replace(self, open=self.open & ~here) if here.any() else self

    def kept(self) -> tuple[RowArray, Keys]:
        """Open rows and their keys."""
        return self.rows[self.open], self.keys[self.open]

    def places(self, rows: RowArray) -> RowArray:
        """Places of those of ``rows`` that it holds."""
        if not len(self.rows) or not len(rows):
            return NONE
        found: RowArray = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        here: RowArray = found[self.rows[found] == rows]
        return here


@dataclass(frozen=True)
class MergePlan:
    """Input of a merge: the main index, and the states whose rows it joins."""

    main: ItemIndex
    merged: Added
    delta: Added

    def run(self) -> Added:
        """The rows of both that are open. Takes as long as copying them; for a thread of its own."""
        parts = [self.merged.kept(), self.delta.kept()]
        rows, keys = (np.concatenate(each) for each in zip(*parts, strict=True))
        return Added.of(self.main, rows, keys)


class LiveIndex(ItemIndex):
    """One state of an index whose items change.

    Equal scores come in ascending row order over all parts. The main index may be of any kind; what was added is
    searched exactly.

    Args:
        main: over rows 0..N-1.
    """

    def __init__(
        self,
        main: ItemIndex,
        main_open: Mask | None = None,
        merged: Added | None = None,
        delta: Added | None = None,
    ) -> None:
        nothing = Added.of(main, NONE, main.keys(NONE))
        self._main, self._main_open = main, main_open
        self._merged, self._delta = merged or nothing, delta or nothing
        self.exact = main.exact  # type: ignore[misc]
        self.takes_vectors = main.takes_vectors  # type: ignore[misc]
        self.recall_at_10, self.unrelated = main.recall_at_10, main.unrelated

    # -- changes -------------------------------------------------------------------------------------------------

    def changed(self, added: Sequence[tuple[int, Keys]], closed: Sequence[int]) -> LiveIndex:
        """The next state.

        Args:
            added: rows above all others, ascending, with their keys [W].
            closed: rows that are not found any more; unknown ones are passed over.
        """
        rows, keys = self._delta.closed(closed).kept()
        if added:
            rows = np.concatenate([rows, np.array([row for row, _ in added], np.int64)])
            keys = np.concatenate([keys, np.stack([key for _, key in added])])
        delta = Added.of(self._main, rows, keys)
        return LiveIndex(self._main, self._closed_main(closed), self._merged.closed(closed), delta)

    def _closed_main(self, closed: Sequence[int]) -> Mask | None:
        here = [row for row in closed if row < self._main.size]
        if not here:
            return self._main_open
        open_N = np.ones(self._main.size, bool) if self._main_open is None else self._main_open.copy()
        open_N[here] = False
        return open_N

    def plan(self) -> MergePlan | None:
        """The next merge; None while the delta is small."""
        most = max(MOST_DELTA, len(self._merged.rows) // 16)
        return MergePlan(self._main, self._merged, self._delta) if len(self._delta.rows) > most else None

    def after(self, plan: MergePlan, joined: Added) -> LiveIndex:
        """The state with the result of a merge in it: what was added or closed meanwhile stays so."""
        kept = [*self._merged.kept()[0].tolist(), *self._delta.kept()[0].tolist()]
        closed = np.setdiff1d(joined.rows, np.array(kept, np.int64))
        rows, keys = self._delta.kept()
        later = ~np.isin(rows, joined.rows)
        return LiveIndex(
            self._main, self._main_open, joined.closed(closed.tolist()), Added.of(self._main, rows[later], keys[later])
        )

    @property
    def delta_size(self) -> int:
        """Rows of the delta, which is searched beside what was merged."""
        return len(self._delta.rows)

    # -- an index ------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Rows that can be found."""
        main = self._main.size if self._main_open is None else int(np.count_nonzero(self._main_open))
        return main + sum(int(np.count_nonzero(part.open)) for part in (self._merged, self._delta))

    @property
    def dim(self) -> int:
        """D, the width of a query."""
        return self._main.dim

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about; keys of added items are held twice."""
        return self._main.nbytes + 2 * sum(part.keys.nbytes for part in (self._merged, self._delta))

    def keys(self, rows_R: RowArray) -> Keys:
        """Keys of rows that are or were of the main index, or are open, [R, W]."""
        return np.concatenate([self._key(int(row)) for row in rows_R]) if len(rows_R) else self._main.keys(rows_R)

    def _key(self, row: int) -> Keys:
        wanted = np.array([row], np.int64)
        if row < self._main.size:
            return self._main.keys(wanted)
        for part in (self._merged, self._delta):
            if len(places := part.places(wanted)):
                return part.keys[places]
        raise SearchError(f"row {row} is not in the index")

    def scores(self, queries_BD: FloatArray, keys_RW: Keys) -> FloatArray:
        """See `ItemIndex.scores`."""
        return self._main.scores(queries_BD, keys_RW)

    def cosines(self, keys_AW: Keys, keys_BW: Keys) -> FloatArray:
        """See `ItemIndex.cosines`."""
        return self._main.cosines(keys_AW, keys_BW)

    def query_of(self, keys_RW: Keys) -> FloatArray:
        """See `ItemIndex.query_of`."""
        return self._main.query_of(keys_RW)

    def _checked_rows(self, rows: np.typing.NDArray[np.integer], name: str) -> RowArray:
        """Rows of any number: one that is gone cannot be answered with, and needs no leaving out."""
        return np.asarray(rows, np.int64).ravel()

    def trouble(self) -> str | None:
        """Why the main index cannot be searched; None while it can."""
        return self._main.trouble()

    def _search(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        found = [self._in_main(queries_BD, k, among)]
        found += [_in_added(part, queries_BD, k, among) for part in (self._merged, self._delta) if part.index]
        if len(found) == 1:
            return found[0]
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        rows = np.concatenate([rows for _, rows in found], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

    def _in_main(self, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
        size, open_N, allowed = self._main.size, self._main_open, among.allowed
        exclude = None if among.exclude is None else [rows[rows < size] for rows in among.exclude]
        if allowed is not None:
            allowed = allowed[allowed < size]
            allowed = allowed if open_N is None else allowed[open_N[allowed]]
        elif open_N is not None:
            allowed = np.flatnonzero(open_N)
        return self._main.search(queries_BD, k, exclude, allowed, among.wanted)


def _in_added(part: Added, queries_BD: FloatArray, k: int, among: Eligible) -> tuple[FloatArray, RowArray]:
    assert part.index is not None
    places: RowArray | None = None
    if among.allowed is not None:
        places = part.places(among.allowed)
        places = places[part.open[places]]
    elif not part.open.all():
        places = np.flatnonzero(part.open)
    lists = None if among.exclude is None else [part.places(rows) for rows in among.exclude]
    scores, found = part.index.search(queries_BD, k, lists, places)
    return scores, np.where(found < 0, -1, part.rows[found])


def _exact(main: ItemIndex, keys_MW: Keys) -> ItemIndex:
    """An exact index over items that are added to ``main``."""
    return FlatIndex.build(keys_MW) if isinstance(main, VectorIndex) else main.over_keys(keys_MW)
