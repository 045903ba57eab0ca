"""``ivf-pq``: approximate search in cells of product-quantised codes (Jegou, Douze and Schmid 2011),
`faiss.IndexIVFPQ`, with exact scores for the best of what they find.

A search reads ``subvectors`` bytes an item instead of 4 bytes a dimension; the vectors themselves are kept for the
exact scores.
"""

from __future__ import annotations

from typing import Any, Literal

import faiss
from pydantic import Field

from index.base import FloatArray, SearchError
from index.ivf.cells import IvfIndex, IvfSpec
from index.kinds.flat import FlatIndex

DIMS_A_BYTE = 4  # dimensions that one byte stands for, where the spec names no number of bytes
ENOUGH_FOR_8_BITS = 2048  # items; codes of fewer have 16 values each instead of 256


class IvfPqSpec(IvfSpec):
    """Cells of product-quantised codes with exact re-ranking."""

    kind: Literal["ivf-pq"] = "ivf-pq"
    subvectors: int = Field(
        0, ge=0, le=4096, description="parts of a vector with a code each, a divisor of its width; 0: a quarter of it"
    )


class IvfPqIndex(IvfIndex):
    """Approximate maximum inner product search in product-quantised cells."""

    Spec = IvfPqSpec
    MAGIC = b"AnPQ"
    Exact = FlatIndex

    @classmethod
    def empty(cls, spec: IvfPqSpec, quantizer: Any, size: int) -> Any:
        """An `IndexIVFPQ`; raises `SearchError` where the parts do not divide the width."""
        return cls.codes_of(spec, quantizer, DIMS_A_BYTE, 8 if size >= ENOUGH_FOR_8_BITS else 4)

    @staticmethod
    def codes_of(spec: IvfPqSpec, quantizer: Any, dims_a_part: int, bits: int) -> Any:
        """An `IndexIVFPQ` with parts of so many dimensions, where the spec names no number of parts."""
        dim = int(quantizer.d)
        most = max(1, dim // dims_a_part)
        parts = spec.subvectors or max(each for each in range(1, most + 1) if dim % each == 0)
        if dim % parts:
            raise SearchError(f"subvectors is {parts}, and a vector has {dim} numbers; give a divisor of that")
        return faiss.IndexIVFPQ(quantizer, dim, quantizer.ntotal, parts, bits, faiss.METRIC_INNER_PRODUCT)

    @classmethod
    def train_codes(cls, coded: Any, residuals_SD: FloatArray) -> None:
        """Train the codebooks."""
        coded.pq.cp.min_points_per_centroid = 1
        coded.pq.train(residuals_SD)

    @classmethod
    def storage(cls, coded: Any) -> tuple[Any, int]:
        """The codebooks, concatenated."""
        return coded.pq.centroids, int(coded.pq.centroids.size())


INDEX = IvfPqIndex
