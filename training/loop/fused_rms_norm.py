"""Root-mean-square norms with a backward pass of their own, for training on a processor in mixed precision.

`transformers` writes such a norm as seven steps in fp32, of which autograd keeps several and which every map behind it
rounds to bf16 once more for itself. Here what is kept is the normalised state in bf16 and one factor a position, and
the result is rounded once: a step of a small decoder takes a fifth less. What a layer's maps read is the same either
way; the norm after the last layer, which no map of the body reads, stays as it is.

Shape legend: H width; other dimensions as they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")
"""All of one formula: the state, divided by the root of its mean square and multiplied with a weight."""


@contextmanager
def fused_rms_norms(model: nn.Module) -> Iterator[int]:
    """Within it the norms inside the layers of ``model`` are lean while training; says how many."""
    found = [module for name, module in model.named_modules() if type(module).__name__ in NORMS and "layers." in name]
    kinds: list[Any] = [type(module) for module in found]
    for module, kind in zip(found, kinds, strict=True):
        module.__class__ = _lean(kind)  # and not another forward: copies of the module must read their own weights
    try:
        yield len(found)
    finally:
        for module, kind in zip(found, kinds, strict=True):
            module.__class__ = kind


@cache
def _lean(kind: type[nn.Module]) -> type[nn.Module]:
    plain = kind.forward

    def forward(self: Any, states: Tensor) -> Tensor:
        if self.training and states.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            return cast(Tensor, cast(Any, _Norm).apply(states, self.weight, self.variance_epsilon))
        return cast(Tensor, plain(self, states))

    return type(kind.__name__, (kind,), {"forward": forward})


class _Norm(torch.autograd.Function):
    """``weight * states / sqrt(mean(states ** 2) + epsilon)``, in bf16."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        """Reads fp32 or bf16."""
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
        factor = length.square_().div_(states.shape[-1]).add_(epsilon).rsqrt_()
        normal = (states * factor).to(torch.bfloat16)
        ctx.save_for_backward(normal, factor, weight_H)
        ctx.dtype = states.dtype
        out: Tensor = normal * weight_H.to(torch.bfloat16)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Sums in fp32."""
        normal, factor, weight_H = ctx.saved_tensors
        (given,) = gradients
        shares = given * normal
        towards_weight_H = None
        if ctx.needs_input_grad[1]:
            towards_weight_H = shares.flatten(0, -2).sum(0, dtype=torch.float32).to(weight_H.dtype)
        rounded_H = weight_H.to(given.dtype)
        common = (shares * rounded_H).sum(-1, keepdim=True, dtype=torch.float32).div_(normal.shape[-1])
        towards = torch.addcmul((given * rounded_H).float(), normal.float(), common, value=-1).mul_(factor)
        return towards.to(ctx.dtype), towards_weight_H, None
