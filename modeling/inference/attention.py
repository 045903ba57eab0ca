"""Scaled dot-product attention with shared key and value heads."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

ROWS = 32
"""Queries of a call on a CPU. Its kernel computes scores of positions that a causal mask then hides; in calls of so
many queries, each with the keys up to its last one, 240 positions take 0.65 to 0.8 of the time."""


def attention(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Scaled dot-product attention; heads of keys and values may be fewer, each shared by a group of queries."""
    shared = keys.shape[1] != queries.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=shared, **options)


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention [B, A, T, D] of queries [B, A, T, D] that are the last T of S positions.

    Args:
        queries: of those positions.
        keys, values: of all positions, [B, A', S, D]; A' divides A.
    """
    count, whole = queries.shape[2], keys.shape[2]
    if count == whole and (queries.is_cuda or count <= ROWS):
        return attention(queries, keys, values, is_causal=True)
    hidden_TS = queries.new_full((count, whole), float("-inf")).triu_(whole - count + 1)
    if queries.is_cuda or count <= ROWS:
        return attention(queries, keys, values, attn_mask=hidden_TS)
    before = whole - count
    # position by position, as the next map reads it
    mixed_BTAD = queries.new_empty(len(queries), count, queries.shape[1], values.shape[-1])
    mixed = mixed_BTAD.transpose(1, 2)
    for start in range(0, count, ROWS):
        end = min(start + ROWS, count)
        seen = slice(before + end)
        part = queries[:, :, start:end]
        mask_TS = hidden_TS[start:end, seen]
        mixed[:, :, start:end] = attention(part, keys[:, :, seen], values[:, :, seen], attn_mask=mask_TS)
    return mixed
