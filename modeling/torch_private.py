"""Private functions of PyTorch that anyo uses; pyproject.toml bounds PyTorch's version for it.

Everything private of the library is here, so that a new version is looked at in one place.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def int8_product(left_PI: Tensor, right_IO: Tensor) -> Tensor:
    """The product [P, O] of two int8 matrices, summed in int32."""
    return torch._int_mm(left_PI, right_IO)


def flash_attention(
    queries_PAD: Tensor, keys_SAD: Tensor, values_SAD: Tensor, query_ends: Tensor, key_ends: Tensor, most_queries: int,
    most_keys: int,
) -> Tensor:  # fmt: skip
    """Causal attention over rows of different length, on a GPU; see `modeling.inference.varlen`.

    The operator itself: its public form (torch.nn.attention.varlen) has other arguments in every version of torch.
    """
    found: Tensor = torch.ops.aten._flash_attention_forward(
        queries_PAD, keys_SAD, values_SAD, query_ends, key_ends, most_queries, most_keys, 0.0, True, False
    )[0]
    return found


class OneDnn:
    """oneDNN's linear operators over weights in blocks, and whether the processor has its bf16 ones."""

    def __init__(self) -> None:
        operators: Any = torch.ops.mkldnn
        self.reorder = operators._reorder_linear_weight.default
        self.linear = operators._linear_pointwise.default
        self.linear_joined = operators._linear_pointwise.binary
        self.bf16 = bool(operators._is_mkldnn_bf16_supported())


def tensor_tables(module: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """A module's own parameters and buffers by name; what is put there becomes the module's."""
    return cast(Any, module._parameters), module._buffers


def own_module_table(part: nn.Module, of: nn.Module) -> None:
    """Give a shallow copy of a module a table of submodules of its own, with the same submodules."""
    part.__dict__["_modules"] = dict(of._modules)
