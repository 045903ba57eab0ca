"""``ivf-sq``: approximate search in cells of scalar-quantised codes, `faiss.IndexIVFScalarQuantizer`, with exact scores
for the best of what they find.

A search reads 1 byte a dimension, or half of one, and loses less than product quantisation does; the vectors themselves
are kept for the exact scores.
"""

from __future__ import annotations

from typing import Any, Literal

import faiss
from pydantic import Field

from index.base import FloatArray
from index.ivf.cells import IvfIndex, IvfSpec
from index.kinds.flat import FlatIndex

KINDS = {4: faiss.ScalarQuantizer.QT_4bit, 8: faiss.ScalarQuantizer.QT_8bit}


class IvfSqSpec(IvfSpec):
    """Cells of scalar-quantised codes with exact re-ranking."""

    kind: Literal["ivf-sq"] = "ivf-sq"
    bits: int = Field(8, ge=4, le=8, multiple_of=4, description="bits of a dimension, 4 or 8")


class IvfSqIndex(IvfIndex):
    """Approximate maximum inner product search in scalar-quantised cells."""

    Spec = IvfSqSpec
    MAGIC = b"AnSQ"
    Exact = FlatIndex

    @classmethod
    def empty(cls, spec: IvfSqSpec, quantizer: Any, size: int) -> Any:
        """An `IndexIVFScalarQuantizer`."""
        dim, metric = int(quantizer.d), faiss.METRIC_INNER_PRODUCT
        return faiss.IndexIVFScalarQuantizer(quantizer, dim, quantizer.ntotal, KINDS[spec.bits], metric, True)

    @classmethod
    def train_codes(cls, coded: Any, residuals_SD: FloatArray) -> None:
        """Compute the range of every dimension."""
        coded.sq.train(residuals_SD)

    @classmethod
    def storage(cls, coded: Any) -> tuple[Any, int]:
        """Minimum and width of every dimension [2 D]."""
        return coded.sq.trained, 2 * int(coded.d)


INDEX = IvfSqIndex
