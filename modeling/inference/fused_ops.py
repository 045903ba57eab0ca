"""Operations between the matrix products of a layer, compiled to few kernels for a GPU.

There every kernel costs some microseconds of launching, and every pass over a large tensor its way to memory and back;
`torch.compile` makes one kernel of each of these functions. Where it cannot (no compiler on the machine) they run as
they stand here, which gives the same and takes longer.

Shape legend: P positions, A heads, A' shared heads of keys and values, D width of a head, F width of the feed-forward,
S positions that are attended to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def turned(
    joint_PAD: Tensor,
    heads: int,
    shared: int,
    query_norm_D: Tensor | None,
    key_norm_D: Tensor | None,
    epsilon: float,
    cos_P1D: Tensor,
    signed_P1D: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [P, A, D], keys and values [P, A', D] from one product: normalised where there are norms, and turned."""
    queries, keys, values = joint_PAD.split([heads, shared, shared], dim=1)
    if query_norm_D is not None and key_norm_D is not None:
        queries, keys = normal(queries, query_norm_D, epsilon), normal(keys, key_norm_D, epsilon)
    half = joint_PAD.shape[-1] // 2
    queries, keys = (
        each * cos_P1D + torch.cat([each[..., half:], each[..., :half]], -1) * signed_P1D for each in (queries, keys)
    )
    return queries.contiguous(), keys.contiguous(), values.contiguous()


def gated(joint_PF: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """The gated feed-forward's inner state from one product of gate and what it gates."""
    gate_PF, up_PF = joint_PF.chunk(2, dim=-1)
    return activation(gate_PF) * up_PF


def behind(prefix_SAD: Tensor, states_PAD: Tensor, places_S: Tensor) -> Tensor:
    """Rows of the prefix and the states, in the order in which they are attended to."""
    return torch.cat([prefix_SAD, states_PAD]).index_select(0, places_S)


def normal(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm."""
    wide = states.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(states.dtype) * weight


@dataclass(frozen=True)
class FusedOps:
    """The functions above, compiled or not."""

    turned: Callable[..., tuple[Tensor, Tensor, Tensor]]
    gated: Callable[..., Tensor]
    behind: Callable[..., Tensor]


PLAIN = FusedOps(turned, gated, behind)


@cache
def fused_ops_for(device: torch.device) -> FusedOps:
    """The pieces for a device: compiled on a GPU, if compiling works there.

    They are compiled for the shapes they are called with: once for the first, a second time for any number of
    positions.
    """
    if device.type != "cuda":
        return PLAIN
    try:
        # not with the pieces themselves: what differs between the calls it has seen is compiled as unknown
        torch.compile(_trial)(torch.ones(8, device=device))
    except Exception as error:  # whatever a compiler that is missing or broken raises
        log.warning("layers run uncompiled: %s", (str(error) or repr(error)).splitlines()[0])
        return PLAIN
    return FusedOps(torch.compile(turned), torch.compile(gated), torch.compile(behind))


def _trial(numbers: Tensor) -> Tensor:
    return 2 * numbers + 1
