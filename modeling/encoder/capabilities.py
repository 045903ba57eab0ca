"""Capabilities that follow from a model's description, decided in one place for training, serving and the manifest."""

from __future__ import annotations

from modeling.backbone.adapters import adapter_of
from modeling.encoder.pooling import POOLINGS
from modeling.spec import Capabilities, ModelSpec


def capabilities_of(spec: ModelSpec) -> Capabilities:
    """Capabilities of a combination of history, attention, pooling and adapter.

    Raises:
        AdapterError: there is no such adapter.
    """
    pooling, adapter = POOLINGS[spec.pooling.kind], adapter_of(spec.adapter.kind)
    causal = spec.backbone.attention == "causal"
    # the fast forward knows the backbone's own layers, vectors in every item's place, and one wanted position a row
    packed = causal and pooling.last_position and adapter.merges and spec.history.form != "text" and spec.has_network
    return Capabilities(
        reads=("ids", "text") if spec.history.reads_text else ("ids",),
        causal=causal,
        every_boundary=causal and pooling.every_boundary and not adapter.needs_condition,
        packed=packed,
        prefix_reuse=packed and not adapter.needs_condition,
        merges=adapter.merges,
    )
