"""Precision of a language model, and its linear maps in int8: a quarter of the memory, and integer products.

Weights have one scale an output (symmetric, no zero point), made once. What a map reads is quantised when it comes,
one scale a position, so that a user's vector does not depend on who else is in the batch; products are summed exactly
in 32 bits. Embeddings, norms, attention, projector and items stay as they are. Dettmers et al. 2022 (LLM.int8(),
section 3.1, "vector-wise quantization"), without their outlier decomposition: `benchmarks/encoder/precision.py`
measures what that costs.

Shape legend: P positions, I inputs of a map, O outputs.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from modeling.torch_private import int8_product

Precision = Literal["fp32", "bf16", "int8"]
"""fp32: as trained; bf16: weights and states; int8: weights and what they are multiplied with, all else as in fp32."""
LARGEST = 127


def dtype_of(precision: Precision) -> torch.dtype:
    """Of the weights that are loaded; those of eight bits are made of fp32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


class PrecisionError(Exception):
    """The precision asked for cannot be computed here; one sentence."""


class Rows(NamedTuple):
    """Vectors in eight bits: their integers [P, I] and what one of them is worth [P, 1]."""

    integers_PI: Tensor
    scales_P1: Tensor

    @classmethod
    def of(cls, states_PI: Tensor) -> Rows:
        """Round every row to multiples of a 127th of its largest element; a row of zeros stays one."""
        scales_P1 = states_PI.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny).div_(LARGEST)
        return cls((states_PI / scales_P1).round_().to(torch.int8), scales_P1)


class Int8Linear(nn.Module):
    """An `nn.Linear` whose weight is rounded: it reads floats, or `Rows` that several maps share."""

    rounds_weights = True
    integers_OI: Tensor
    scales_O: Tensor
    bias: Tensor | None

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        rows = Rows.of(plain.weight.detach().float())
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("integers_OI", rows.integers_PI)
        self.register_buffer("scales_O", rows.scales_P1[:, 0].clone())
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach().float())

    def forward(self, given: Tensor | Rows) -> Tensor:
        """[..., I] to [..., O]."""
        if isinstance(given, Rows):
            rows, shape = given, given.integers_PI.shape[:-1]
        else:
            rows, shape = Rows.of(given.reshape(-1, self.in_features)), given.shape[:-1]
        sums_PO = int8_product(rows.integers_PI, self.integers_OI.t())
        out_PO = sums_PO.float().mul_(rows.scales_P1).mul_(self.scales_O)
        if self.bias is not None:
            out_PO.add_(self.bias)
        return out_PO.view(*shape, self.out_features)


def read_once(first: nn.Module, states_PI: Tensor) -> Any:
    """Input of `first` and other maps of its kind: rounded once for all of them if they round."""
    return Rows.of(states_PI) if isinstance(first, Int8Linear) else states_PI


def quantise(backbone: nn.Module) -> int:
    """Replace the linear maps of a backbone in fp32, adapters merged; returns how many.

    Raises:
        PrecisionError: this processor has no exact products of eight-bit integers, or nothing could be replaced.
    """
    if not exact_products():
        raise PrecisionError(
            "precision int8 needs a processor that multiplies eight-bit integers without overflow (AVX-VNNI, AVX-512 "
            "VNNI or AMX on x86), and this one does not: use fp32 or auto"
        )
    count = 0
    for owner in list(backbone.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear:
                setattr(owner, name, Int8Linear(child))
                count += 1
    if not count:
        raise PrecisionError(f"{type(backbone).__name__} has no linear maps of the usual kind: use fp32 or bf16")
    return count


def exact_products() -> bool:
    """Whether the largest products come out right: older instructions add pairs of them in 16 bits, which overflow."""
    rows_PI = torch.full((16, 512), LARGEST, dtype=torch.int8)
    columns_IO = torch.full((512, 64), LARGEST, dtype=torch.int8)
    columns_IO[:, 1::2] = -LARGEST
    expected_O = LARGEST * columns_IO.int().sum(0)
    return all(bool((int8_product(rows_PI[:rows], columns_IO) == expected_O).all()) for rows in (1, 16))
