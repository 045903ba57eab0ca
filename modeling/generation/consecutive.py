"""Division of a sequence into consecutive groups of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def consecutive(lengths: Sequence[int], most: int) -> Iterator[range]:
    """Places of each group, in order: as many as have at most ``most`` in sum, at least one."""
    start, total = 0, 0
    for place, length in enumerate(lengths):
        if place > start and total + length > most:
            yield range(start, place)
            start, total = place, 0
        total += length
    if lengths:
        yield range(start, len(lengths))
