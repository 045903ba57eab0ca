"""A backbone cut in two: the lower layers, whose states are the same for a text as long as nothing below the cut is
trained, and the upper ones, which go on from them.

Both halves are made of the backbone's own modules. That the two together give what the whole gives is not taken on
trust: `cut` runs both and compares.

Shape legend: B texts, T tokens, H width.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from modeling.torch_private import own_module_table


class CannotCut(ValueError):
    """A backbone whose layers cannot be run in two parts."""


class SplitBackbone:
    """The two halves.

    Args:
        body: a Hugging Face decoder without its head: embeddings, ``layers``, a norm.
        below: how many layers are below the cut.

    Raises:
        CannotCut: it has no such layers, or the halves do not give what the whole gives.
    """

    def __init__(self, body: nn.Module, below: int) -> None:
        layers = getattr(body, "layers", None)
        if not isinstance(layers, nn.ModuleList) or not isinstance(getattr(body, "norm", None), nn.Module):
            raise CannotCut(f"{type(body).__name__} has no list of layers with a norm behind it that could be cut")
        if not 0 < below < len(layers):
            raise CannotCut(f"{below} of {len(layers)} layers are below the cut; allowed are 1 to {len(layers) - 1}")
        self._lower = _part(body, slice(0, below), norm=False)
        self._upper = _part(body, slice(below, len(layers)), norm=True)
        self._prove(body)

    def lower(self, embeds_BTH: Tensor) -> Tensor:
        """States [B, T, H] at the cut; padding stands on the right."""
        return cast(Tensor, self._lower(inputs_embeds=embeds_BTH, use_cache=False).last_hidden_state)

    def upper(self, states_BTH: Tensor, **options: Any) -> Any:
        """Output of the whole network for a text with these states at the cut; ``options`` of its forward."""
        return self._upper(inputs_embeds=states_BTH, use_cache=False, **options)

    @torch.no_grad()
    def _prove(self, body: nn.Module) -> None:
        words = cast(Any, body).get_input_embeddings()
        embeds_1TH = words(torch.arange(min(16, words.num_embeddings), device=words.weight.device)[None])
        modes = {part: part.training for part in body.modules()}
        body.eval()
        whole = cast(Any, body)(inputs_embeds=embeds_1TH, use_cache=False).last_hidden_state
        halves = self.upper(self.lower(embeds_1TH)).last_hidden_state
        for part, mode in modes.items():
            part.training = mode
        if not torch.equal(whole, halves):
            raise CannotCut(
                f"{type(body).__name__} does not give the same in two parts (states differ by "
                f"{float((whole - halves).abs().max()):.2g}): its layers are not all it computes"
            )


def _part(body: nn.Module, layers: slice, *, norm: bool) -> Any:
    """A view of a backbone with some of its layers."""
    part = copy.copy(body)
    own_module_table(part, body)
    part.layers = nn.ModuleList(cast(Any, body).layers[layers])
    if not norm:
        part.norm = nn.Identity()
    config = copy.copy(cast(Any, body).config)
    config.num_hidden_layers = len(part.layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[layers]
    part.config = config
    return part
