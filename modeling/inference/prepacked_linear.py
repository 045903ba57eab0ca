"""Linear maps in half precision on a processor, their weights in the layout of its products.

A product in bf16 turns its weights into blocks first, at every call, which costs a fifth to a third of it at the
lengths of a request. Here they are turned once. What follows a product in a layer (an activation, a factor, the
residual) is done by the product itself, before its result is rounded and goes to memory: one rounding and one pass
less.

The products are oneDNN's, by the names under which `torch.compile` calls them; where a build or a processor lacks them
maps stay as they are. In fp32 the layout gains nothing.

Shape legend: P positions, I inputs of a map, O outputs.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from modeling.torch_private import OneDnn

MULTIPLE = 16
"""A product is prepared for its number of positions when that number is met first, which takes as long as the product
itself and keeps half a megabyte; the oldest of a thousand preparations is forgotten. Multiples of this are few, and 16
rows are computed together anyway."""
FINE = 12
"""Multiples up to which each is used; beyond, every other one."""


class PrepackedLinear(nn.Module):
    """An `nn.Linear` in bf16 whose weight is in blocks; there is no plain copy of it."""

    blocks_OI: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("blocks_OI", _products().reorder(plain.weight.detach()), persistent=False)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())

    def forward(self, states: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        return _products().alone(states, self, "none")

    def swish(self, states: Tensor) -> Tensor:
        """``silu(map(states))``."""
        return _products().alone(states, self, "swish")

    def with_other(self, states: Tensor, other: Tensor, step: str) -> Tensor:
        """``map(states) + other`` (step ``add``) or ``map(states) * other`` (``mul``), a new tensor [..., O]."""
        return _products().joined(states, other, self, step)


class _Products:
    """The products that are used here."""

    def __init__(self) -> None:
        operators = OneDnn()
        self._reorder, self._alone, self._joined = operators.reorder, operators.linear, operators.linear_joined
        self.supported = operators.bf16

    def reorder(self, weight_OI: Tensor) -> Tensor:
        """In blocks; one layout does for all numbers of positions."""
        return cast(Tensor, self._reorder(weight_OI, None))

    def alone(self, states: Tensor, map_: PrepackedLinear, then: str) -> Tensor:
        """``then(map(states))``."""
        return cast(Tensor, self._alone(states, map_.blocks_OI, map_.bias, then, [], ""))

    def joined(self, states: Tensor, other: Tensor, map_: PrepackedLinear, step: str) -> Tensor:
        """``step(map(states), other)``."""
        return cast(Tensor, self._joined(states, other, map_.blocks_OI, map_.bias, step))

    def right(self) -> bool:
        """Whether the operators are called as this build wants it, and give what they should."""
        weight_OI = torch.arange(-8, 8).repeat(16, 1).to(torch.bfloat16) / 8
        states_PI = torch.eye(16, dtype=torch.bfloat16)[:3]
        blocks_OI, expected_PO = self.reorder(weight_OI), states_PI @ weight_OI.T
        found = [
            self._alone(states_PI, blocks_OI, None, "none", [], ""),
            self._alone(states_PI, blocks_OI, None, "swish", [], ""),
            self._joined(states_PI, expected_PO, blocks_OI, None, "add"),
            self._joined(states_PI, expected_PO, blocks_OI, None, "mul"),
        ]
        wanted = [expected_PO, nn.functional.silu(expected_PO), 2 * expected_PO, expected_PO.square()]
        return all(torch.allclose(one, other, rtol=0.01, atol=0.01) for one, other in zip(found, wanted, strict=True))


@cache
def _found() -> _Products | None:
    try:
        with torch.inference_mode():
            found = _Products()
            return found if found.supported and found.right() else None
    except (AttributeError, RuntimeError, TypeError):  # a build without oneDNN, or one that calls them otherwise
        return None


def _products() -> _Products:
    found = _found()
    assert found is not None, "maps are put in blocks where there are products for them"
    return found


def prepack(backbone: nn.Module) -> int:
    """Replace the linear maps of a backbone in bf16 on a processor, adapters merged; returns how many.

    None are where there are no such products, weights are of another type or device.
    """
    count = 0
    if _found() is None:
        return count
    for owner in list(backbone.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear and child.weight.dtype == torch.bfloat16 and child.weight.device.type == "cpu":
                setattr(owner, name, PrepackedLinear(child))
                count += 1
    return count


def multiple_of(backbone: nn.Module) -> int:
    """Multiple to which the number of positions of a pass should be padded."""
    return MULTIPLE if any(isinstance(part, PrepackedLinear) for part in backbone.modules()) else 1


def filled(count: int, multiple: int) -> int:
    """The number of positions to compute for so many."""
    if multiple > 1 and count > FINE * multiple:
        multiple *= 2
    return count + -count % multiple


def all_filled(count: int, multiple: int) -> list[int]:
    """The numbers that `filled` gives for 1 to ``count``."""
    return sorted({filled(each, multiple) for each in range(1, count + 1)})


def padded_length(longest: int, rows: int, multiple: int) -> int:
    """The least length from ``longest`` on with which so many rows have a multiple of positions together."""
    return longest + -longest % (multiple // math.gcd(multiple, rows))


def added(map_: nn.Module, states: Tensor, residual: Tensor) -> Tensor:
    """``map(states) + residual``, in one step where the map has it."""
    if isinstance(map_, PrepackedLinear):
        return map_.with_other(states, residual, "add")
    out: Tensor = map_(states)
    return out.add_(residual)


def gated(gate: nn.Module, activation: nn.Module, up: nn.Module, states: Any) -> Tensor:
    """``activation(gate(states)) * up(states)``, in two steps where the maps have them."""
    if isinstance(gate, PrepackedLinear) and isinstance(up, PrepackedLinear) and _is_silu(activation):
        return up.with_other(states, gate.swish(states), "mul")
    out: Tensor = activation(gate(states)).mul_(up(states))
    return out


def _is_silu(activation: nn.Module) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"
