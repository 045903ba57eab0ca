"""Linear maps on a processor, their weights in the layout of its products.

A product in bf16 turns its weights into blocks first, at every call, which costs a fifth to a third of it at the
lengths of a request. Here they are turned once. What follows a product in a layer (an activation, a factor, the
residual) is done by the product itself, before its result is rounded and goes to memory: one rounding and one pass
less.

In fp32 torch multiplies with another library, and which is faster depends on the processor: products over blocks take
0.75 to 0.85 of the time on one with AVX-512 that MKL was not written for, and gain nothing on one with AVX2 alone. So
both are timed once for each shape of a map.

The products are oneDNN's, by the names under which `torch.compile` calls them; where a build or a processor lacks them
maps stay as they are.

Shape legend: P positions, I inputs of a map, O outputs.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.torch_private import OneDnn

log = logging.getLogger(__name__)

MULTIPLE = 16
"""A product is prepared for its number of positions when that number is met first, which takes as long as the product
itself and keeps half a megabyte; the oldest of a thousand preparations is forgotten. Multiples of this are few, and 16
rows are computed together anyway."""
BLOCK = 16
"""Multiples of a product's positions at most: more positions are several products, so that few numbers are met."""
SMALLEST = 1 << 16
"""Weights of a map from which blocks are tried in fp32; with fewer, a call costs as much as the product."""
LESS = 0.95
"""Part of the plain product's time that a product over blocks may take in fp32: what they gain pays for being new."""
TIMED_POSITIONS, ROUNDS = 128, 5


class PrepackedLinear(nn.Module):
    """An `nn.Linear` whose weight is in blocks; there is no plain copy of it."""

    blocks_OI: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self._dtype = plain.weight.dtype
        self.register_buffer("blocks_OI", self._products.reorder(plain.weight.detach()), persistent=False)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())

    @property
    def _products(self) -> _Products:
        return _products(self._dtype)

    def forward(self, states: Tensor) -> Tensor:
        """[..., I] to [..., O]; numbers of positions that `pooled_states` would not give are filled up here."""
        count = states.shape[:-1].numel()
        if count <= MULTIPLE or (count % MULTIPLE == 0 and count <= BLOCK * MULTIPLE):
            return self._products.alone(states, self, "none")
        rows_PI = states.reshape(count, self.in_features)
        rows_PI = F.pad(rows_PI, (0, 0, 0, filled(count, MULTIPLE) - count))
        blocks = [self._products.alone(rows_PI[each], self, "none") for each in blocks_of(len(rows_PI), MULTIPLE)]
        return torch.cat(blocks)[:count].view(*states.shape[:-1], self.out_features)

    def swish(self, states: Tensor) -> Tensor:
        """``silu(map(states))``."""
        return self._products.alone(states, self, "swish")

    def with_other(self, states: Tensor, other: Tensor, step: str) -> Tensor:
        """``map(states) + other`` (step ``add``) or ``map(states) * other`` (``mul``), a new tensor [..., O]."""
        return self._products.joined(states, other, self, step)

    def plain_weight(self) -> Tensor:
        """A copy of the weight [O, I] in the usual layout."""
        return self.blocks_OI.to_dense() if self.blocks_OI.is_mkldnn else self.blocks_OI.clone()


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

    def right(self, dtype: torch.dtype) -> bool:
        """Whether the operators are called as this build wants it, and give what they should."""
        weight_OI = torch.arange(-8, 8).repeat(16, 1).to(dtype) / 8
        states_PI = torch.eye(16, dtype=dtype)[:3]
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
def _found(dtype: torch.dtype = torch.bfloat16) -> _Products | None:
    try:
        with torch.inference_mode():
            found = _Products()
            supported = found.supported or dtype == torch.float32
            return found if supported and found.right(dtype) else None
    except (AttributeError, RuntimeError, TypeError):  # a build without oneDNN, or one that calls them otherwise
        return None


def _products(dtype: torch.dtype) -> _Products:
    found = _found(dtype)
    assert found is not None, "maps are put in blocks where there are products for them"
    return found


def prepack(backbone: nn.Module) -> int:
    """Replace the linear maps of a backbone in bf16 on a processor, adapters merged; returns how many.

    None are where there are no such products, weights are of another type or device.
    """
    return 0 if _found() is None else _replace(backbone, lambda map_: map_.weight.dtype == torch.bfloat16)


def prepack_where_faster(backbone: nn.Module) -> int:
    """The same for a backbone in fp32: its large maps, where products over blocks are faster here.

    A map's time is taken once for its shape, with the threads that torch has then.
    """

    def gains(map_: nn.Linear) -> bool:
        exact = map_.weight.dtype == torch.float32 and map_.weight.numel() >= SMALLEST
        return exact and faster_in_blocks(map_.in_features, map_.out_features)

    return 0 if _found(torch.float32) is None else _replace(backbone, gains)


def _replace(backbone: nn.Module, chosen: Callable[[nn.Linear], bool]) -> int:
    count = 0
    for owner in list(backbone.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and chosen(child):
                setattr(owner, name, PrepackedLinear(child))
                count += 1
    return count


@cache
def faster_in_blocks(inputs: int, outputs: int) -> bool:
    """Whether a product in fp32 over blocks takes less than `LESS` of the plain one's time: the least of a few rounds
    in which they take turns, of this thread's processor time, which other work lengthens less."""
    plain = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    maps: tuple[nn.Module, nn.Module] = plain, PrepackedLinear(plain)
    states_PI = torch.ones(TIMED_POSITIONS, inputs)
    least = [float("inf")] * 2
    with torch.inference_mode():
        for number, (place, map_) in itertools.product(range(1 + ROUNDS), enumerate(maps)):
            began = time.thread_time()
            map_(states_PI)
            if number:  # the first prepares
                least[place] = min(least[place], time.thread_time() - began)
    ratio = least[1] / max(least[0], 1e-9)
    log.info("products in fp32, %d to %d: %.2f of the time with weights in blocks", inputs, outputs, ratio)
    return ratio < LESS


def multiple_of(backbone: nn.Module) -> int:
    """Multiple to which the number of positions of a pass should be padded."""
    return MULTIPLE if any(isinstance(part, PrepackedLinear) for part in backbone.modules()) else 1


def filled(count: int, multiple: int) -> int:
    """The number of positions to compute for so many: a quarter or half of the multiple where that is enough, since
    products of few positions take as long as their weights take to be read."""
    return next((part for part in _parts(multiple) if count <= part), count + -count % multiple)


def _parts(multiple: int) -> tuple[int, ...]:
    return multiple // 4, multiple // 2


def blocks_of(count: int, multiple: int) -> list[slice]:
    """The products that so many positions take, `filled` already."""
    if multiple == 1:
        return [slice(None)]
    size = BLOCK * multiple
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def all_filled(count: int, multiple: int) -> list[int]:
    """Numbers of positions of the products of up to ``count`` positions."""
    largest = min(filled(count, multiple), BLOCK * multiple)
    return [*(part for part in _parts(multiple) if 0 < part <= largest), *range(multiple, largest + 1, multiple)]


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
