"""``ivf-fastscan``: approximate search in cells of 4-bit product-quantised codes whose tables lie in registers (Andre,
Kermarrec and Le Scouarnec 2015), `faiss.IndexIVFPQFastScan`, with exact scores for the best of what they find.

A code takes as many bits a dimension as ``ivf-pq`` gives it, 2, and is read some ten times as fast, so that a search
can afford to read many cells. It ranks a little less well, which more items with an exact score make up for.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import faiss
from pydantic import Field

from index.kinds.ivf_pq import IvfPqIndex, IvfPqSpec

BITS = 4
DIMS_A_CODE = 2  # dimensions that 4 bits stand for, where the spec names no number of them
TOGETHER = 32  # codes that are read at a time


class IvfFastScanSpec(IvfPqSpec):
    """Cells of 4-bit product-quantised codes with exact re-ranking."""

    cells_factor: ClassVar[int] = 1  # a cell costs as much as some ten codes, so that fewer and larger ones are better

    kind: Literal["ivf-fastscan"] = "ivf-fastscan"  # type: ignore[assignment]
    cells: int = Field(0, ge=0, le=1 << 20, description="cells; 0: √N, with 16 items or more in one on average")
    subvectors: int = Field(
        0, ge=0, le=4096, description="parts of a vector with 4 bits each, a divisor of its width; 0: half of it"
    )
    effort: int = Field(64, ge=1, le=1 << 20, description="cells that a search reads (nprobe)")
    rerank: int = Field(30, ge=1, le=1000, description="items scored exactly for every item asked for")


class IvfFastScanIndex(IvfPqIndex):
    """Approximate maximum inner product search in cells of codes that are read many at a time."""

    Spec = IvfFastScanSpec
    MAGIC = b"AnFS"

    @classmethod
    def empty(cls, spec: Any, quantizer: Any, size: int) -> Any:
        """An `IndexIVFPQ` of 4 bits; raises `SearchError` where the parts do not divide the width."""
        return cls.codes_of(spec, quantizer, DIMS_A_CODE, BITS)

    @classmethod
    def searched(cls, coded: Any) -> Any:
        """The same codes in the order of registers."""
        found: Any = faiss.IndexIVFPQFastScan(coded, TOGETHER)
        found.referenced_objects = coded.referenced_objects  # the quantizer, and no longer the codes as they were
        return found

    @classmethod
    def lists(cls, coded: Any) -> Any:
        """Rows and codes in their usual order."""
        plain = faiss.ArrayInvertedLists(coded.nlist, coded.code_size)
        coded.orig_invlists = plain
        coded.reconstruct_orig_invlists()
        coded.orig_invlists = None
        return plain


INDEX = IvfFastScanIndex
