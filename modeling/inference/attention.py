"""Scaled dot-product attention with shared key and value heads."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor


def attention(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Scaled dot-product attention; heads of keys and values may be fewer, each shared by a group of queries."""
    shared = keys.shape[1] != queries.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=shared, **options)
