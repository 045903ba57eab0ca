"""The gated layer adds nothing where its gates are shut, and what the plain parts add where they are open."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from modeling.backbone.transformer import GatedBlock


@pytest.mark.parametrize(("bias", "share"), [(-60.0, 0.0), (60.0, 1.0), (0.0, 0.5)])
def test_what_is_added_passes_the_gate(bias: float, share: float) -> None:
    torch.manual_seed(0)
    block = GatedBlock(8, 2, 0.0).eval()
    for gate in (block.attention_gate, block.feed_forward_gate):
        torch.nn.init.zeros_(gate.weight)
        torch.nn.init.constant_(gate.bias, bias)
    hidden, mixed = torch.randn(5, 8), torch.randn(5, 8)
    attended = block.add_attention(hidden, mixed)
    torch.testing.assert_close(attended, hidden + share * block.attention_output(mixed))
    gate_, value = block.expand(block.feed_forward_norm(hidden)).chunk(2, -1)
    expected = hidden + share * block.contract(F.silu(gate_) * value)
    torch.testing.assert_close(block.add_feed_forward(hidden), expected)


def test_the_gates_read_the_stream() -> None:
    torch.manual_seed(0)
    block = GatedBlock(8, 2, 0.0).eval()
    hidden, mixed = torch.randn(2, 8), torch.randn(1, 8).expand(2, 8)
    added = block.add_attention(hidden, mixed) - hidden
    assert not torch.allclose(added[0], added[1])
