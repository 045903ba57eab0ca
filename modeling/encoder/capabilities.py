"""Capabilities that follow from a model's description, decided in one place for training, serving and the manifest."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from modeling.backbone.adapters import adapter_of
from modeling.encoder.pooling import POOLINGS
from modeling.spec import ModelSpec, Section


class Capabilities(Section):
    """Capabilities of a ``ModelSpec``; stored in the manifest for readers that do not know the code.

    Attributes:
        reads: kinds of history items: ids of the catalog, free text.
        causal: whether no position sees what comes after it.
        every_boundary: whether one pass gives the states of a history after each of its items, so that a window has as
            many targets as items. Otherwise each target needs a pass of its own.
        packed: whether `modeling.inference.encoder_forward` may read it: rows without padding, the last layer at the
            pooled position alone.
        prefix_reuse: whether the states of a history are those of every history that begins with it
            (`modeling.inference.prefix_cache`).
        merges: whether its adapter is folded into the backbone's weights when it is loaded.
    """

    reads: tuple[Literal["ids", "text"], ...]
    causal: bool
    every_boundary: bool = True
    packed: bool = True
    prefix_reuse: bool = True
    merges: bool = True

    @model_validator(mode="before")
    @classmethod
    def _without_unread(cls, data: Any) -> Any:
        """Older manifests hold three more, which nothing ever read."""
        if isinstance(data, dict):
            return {name: data[name] for name in data if name not in ("prefix_cacheable", "mergeable", "cold_start")}
        return data


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
