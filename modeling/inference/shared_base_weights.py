"""One backbone in memory for models that were tuned from the same one.

Adapters are merged, so that no forward pays for them, and then every tuned map of a backbone is a matrix of its own.
But two of them differ by a matrix of low rank: what one adapter added and the other did not. A model can therefore read
the other's weights and put the difference right behind every map,

    x W'ᵀ = x Wᵀ + (x Rᵀ) Lᵀ,    L R = W' - W,

which is exact up to rounding and takes rank × (I + O) numbers instead of I × O. The factors are found in the weights
(Halko, Martinsson and Tropp 2011, algorithm 4.1), whatever made them; where a difference is not of low rank, as after
full tuning, a model keeps its own weights.

Shape legend: O outputs of a map, I inputs, K rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.inference.prepacked_linear import PrepackedLinear

ROUNDING = 1e-6
"""Largest norm of what is left of a difference, against that of the weights: what merging in fp32 leaves anyway."""
SPARE = 8
RANKS = (16, 32, 64, 128)


class SharedBaseLinear(nn.Module):
    """A linear map that reads the weight of another, and is put right by two thin ones.

    Args:
        base: the other's weight [O, I], or its map where that holds its weight in blocks; its bias is not read.
        left_OK, right_KI: the factors of what is added to the weight.
        bias: of this map.
    """

    def __init__(self, base: Tensor | PrepackedLinear, left_OK: Tensor, right_KI: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = len(left_OK), right_KI.shape[1]
        self.blocks = base if isinstance(base, PrepackedLinear) else None
        if isinstance(base, PrepackedLinear):
            if base.bias is not None:  # its products add it
                bias = -base.bias if bias is None else bias - base.bias
        else:
            self.weight = nn.Parameter(base, requires_grad=False)
        self.register_buffer("left_OK", left_OK)
        self.register_buffer("right_KI", right_KI)
        self.register_buffer("bias", bias)

    def forward(self, given: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        bias = cast("Tensor | None", self.bias)
        more = F.linear(F.linear(given, cast(Tensor, self.right_KI)), cast(Tensor, self.left_OK), bias)
        return more.add_(F.linear(given, self.weight) if self.blocks is None else self.blocks(given))


def correct(model: nn.Module, other: nn.Module) -> int:
    """Let a backbone in fp32 read the weights of another of its kind where that takes less memory.

    Args:
        model: changed; its linear maps are replaced.
        other: not changed; its weights are final.

    Returns:
        How many maps read the other's weights now; 0 where the two do not come from one backbone.
    """
    if not _one_backbone(model, other):
        return 0
    theirs, count = dict(other.named_modules()), 0
    for name, owner in list(model.named_modules()):
        for child, linear in list(owner.named_children()):
            twin = theirs.get(f"{name}.{child}" if name else child)
            if type(linear) is nn.Linear and (shared := _shared(linear, twin)) is not None:
                setattr(owner, child, shared)
                count += 1
    return count


def _shared(linear: nn.Linear, twin: nn.Module | None) -> nn.Module | None:
    """A replacement of ``linear`` that uses its twin's weight; None if their weights differ or are shared already."""
    if isinstance(twin, PrepackedLinear):
        wanted_OI, given_OI = linear.weight.detach(), twin.plain_weight()
        if not _alike(wanted_OI, given_OI):
            return None
        if torch.equal(wanted_OI, given_OI) and _same_bias(linear.bias, twin.bias):
            return twin
        base: Tensor | PrepackedLinear = twin
    elif type(twin) is nn.Linear:
        wanted_OI, base = linear.weight.detach(), (given_OI := twin.weight.detach())
        if not _alike(wanted_OI, given_OI) or torch.equal(wanted_OI, given_OI):  # equal ones become one in the pool
            return None
    else:
        return None
    if (factors := _difference(wanted_OI, given_OI)) is None:
        return None
    return SharedBaseLinear(base, *factors, None if linear.bias is None else linear.bias.detach())


def _same_bias(mine: Tensor | None, others: Tensor | None) -> bool:
    if mine is None or others is None:
        return mine is others
    return torch.equal(mine, others)


def _one_backbone(model: nn.Module, other: nn.Module) -> bool:
    """Whether the two have one kind and the same word vectors, which adapters leave alone."""
    if type(model) is not type(other):
        return False
    words, others = (cast(Any, each).get_input_embeddings().weight for each in (model, other))
    same = words.shape == others.shape and words.dtype == others.dtype == torch.float32
    return same and words.device == others.device and torch.equal(words, others)


def _alike(mine_OI: Tensor, others_OI: Tensor) -> bool:
    """Whether weights may be compared."""
    return mine_OI.shape == others_OI.shape and mine_OI.dtype == others_OI.dtype


def _difference(wanted_OI: Tensor, given_OI: Tensor) -> tuple[Tensor, Tensor] | None:
    """Factors [O, K] and [K, I] of the difference; None where they would not take half the memory at most."""
    difference_OI = wanted_OI - given_OI
    allowed = ROUNDING * float(wanted_OI.norm())
    for rank in _ranks(*difference_OI.shape):
        generator = torch.Generator().manual_seed(0)
        probe_IK = torch.randn(difference_OI.shape[1], rank + SPARE, generator=generator)
        basis_OK, _ = torch.linalg.qr(difference_OI @ probe_IK)
        right_KI = basis_OK.T @ difference_OI
        if float((difference_OI - basis_OK @ right_KI).norm()) > allowed:
            continue
        turn_KK, sizes_K, right_KI = torch.linalg.svd(right_KI, full_matrices=False)
        # the least rank whose rest is within rounding
        rest_K = sizes_K.square().flip(0).cumsum(0).flip(0).sqrt()
        keep = max(1, int((rest_K > allowed).sum()))
        left_OK = (basis_OK @ turn_KK[:, :keep]) * sizes_K[:keep]
        return left_OK.contiguous(), right_KI[:keep].contiguous()
    return None


def _ranks(outputs: int, inputs: int) -> Iterator[int]:
    for rank in RANKS:
        if 2 * (rank + SPARE) * (outputs + inputs) <= outputs * inputs:
            yield rank
