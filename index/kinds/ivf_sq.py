"""``ivf-sq``: approximate search in cells of scalar-quantised codes, `faiss.IndexIVFScalarQuantizer`, with exact scores
for the best of what they find.

A search reads 1 byte a dimension, or half of one, and loses less than product quantisation does; the vectors themselves
are kept for the exact scores.
"""

from __future__ import annotations

from typing import Any, Literal

import faiss
import numpy as np
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
    def learn(cls, coded: Any, residuals_SD: FloatArray) -> FloatArray:
        """Find the range of every dimension."""
        coded.sq.train(residuals_SD)
        return cls.tables(coded)

    @classmethod
    def tables(cls, coded: Any) -> FloatArray:
        """Least value and width of every dimension [2 D]."""
        found: FloatArray = np.asarray(faiss.vector_to_array(coded.sq.trained), np.float32)
        return found

    @classmethod
    def set_tables(cls, coded: Any, tables: FloatArray) -> bool:
        """Put the ranges in."""
        if len(tables) != 2 * coded.d:
            return False
        faiss.copy_array_to_vector(tables, coded.sq.trained)
        return True


INDEX = IvfSqIndex
