"""No adapter: the backbone stays as it is."""

from __future__ import annotations

from torch import nn

from modeling.backbone.adapters.base import Adapter
from modeling.spec import AdapterSpec


class NoAdapter(Adapter):
    """Nothing of the backbone is trained."""

    def attach(self, backbone: nn.Module, spec: AdapterSpec) -> nn.Module:
        return backbone.requires_grad_(False)


ADAPTER = NoAdapter()
