"""Attention in blocks of rows is attention."""

from __future__ import annotations

import pytest
import torch

from modeling.inference.attention import ROWS, causal_attention


@pytest.mark.parametrize("shared", [1, 3])
@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("count", [1, ROWS, ROWS + 1, 3 * ROWS + 7])
def test_a_position_sees_what_stands_before_it_and_itself(count: int, before: int, shared: int) -> None:
    torch.manual_seed(count)
    queries = torch.randn(2, 3, count, 8)
    keys, values = (torch.randn(2, shared, before + count, 8) for _ in range(2))
    found = causal_attention(queries, keys, values)
    wide_keys, wide_values = (each.expand(-1, 3, -1, -1) if shared == 1 else each for each in (keys, values))
    scores = queries @ wide_keys.transpose(-1, -2) / 8**0.5
    for place in range(count):
        scores[:, :, place, before + place + 1 :] = float("-inf")
    torch.testing.assert_close(found, scores.softmax(-1) @ wide_values, atol=1e-5, rtol=1e-5)
