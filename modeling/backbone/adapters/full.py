"""Full fine-tuning: every weight of the backbone is trained, apart from the input embeddings."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from modeling.backbone.adapters.base import Adapter
from modeling.spec import AdapterSpec


class FullFineTuning(Adapter):
    """The backbone's own weights are trained."""

    tunes_backbone = True

    def attach(self, backbone: nn.Module, spec: AdapterSpec) -> nn.Module:
        backbone.requires_grad_(True)
        cast(Any, backbone).get_input_embeddings().requires_grad_(False)
        return backbone


ADAPTER = FullFineTuning()
