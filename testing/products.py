"""Products of maps with fewer bits, as tests choose them: the processor's, a reference in plain arithmetic, or none.

The reference computes what the operators are documented to compute and runs everywhere, so that what is built on them
is tested on every processor; tests with the processor's own carry the marker of what they need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling.inference import prepacked_linear as blocked

BOTH_BF16 = ["reference", pytest.param("processor", marks=pytest.mark.bf16)]
BOTH_INT8 = ["reference", pytest.param("processor", marks=pytest.mark.int8)]
ALL = [
    ("fp32", "processor"),
    ("bf16", "plain"),
    ("bf16", "reference"),
    pytest.param("bf16", "processor", marks=pytest.mark.bf16),
    ("int8", "reference"),
    pytest.param("int8", "processor", marks=pytest.mark.int8),
]
"""Precision, and by which products."""


class ReferenceProducts(blocked._Products):
    """In fp32, rounded once at the end; the layout of weights stays plain."""

    def __init__(self) -> None:
        self.supported = True

    def reorder(self, weight_OI: Tensor) -> Tensor:
        return weight_OI.clone()

    def alone(self, states: Tensor, map_: blocked.PrepackedLinear, then: str) -> Tensor:
        out = _exact(states, map_)
        return (F.silu(out) if then == "swish" else out).to(states.dtype)

    def joined(self, states: Tensor, other: Tensor, map_: blocked.PrepackedLinear, step: str) -> Tensor:
        out = _exact(states, map_)
        return (out + other.float() if step == "add" else out * other.float()).to(states.dtype)


def _exact(states: Tensor, map_: blocked.PrepackedLinear) -> Tensor:
    return F.linear(states.float(), map_.blocks_OI.float(), None if map_.bias is None else map_.bias.float())


def exact_int_mm(rows_PI: Tensor, columns_IO: Tensor) -> Tensor:
    """Sums in 32 bits, which hold 133,000 of the largest products."""
    return rows_PI.int() @ columns_IO.int()


def use_products(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let maps in bf16 and in eight bits be multiplied by `which` until the test ends."""
    if which == "processor":
        return
    found: Callable[[], Any] = ReferenceProducts if which == "reference" else lambda: None
    once = found()
    monkeypatch.setattr(blocked, "_found", lambda dtype=torch.bfloat16: once)
    monkeypatch.setattr(torch, "_int_mm", exact_int_mm)
