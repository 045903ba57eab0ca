"""The contract of an adapter: what is trained beside or instead of a pretrained backbone's weights."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from torch import nn

from modeling.artifact.verified import Files
from modeling.spec import AdapterSpec


class AdapterError(ValueError):
    """An adapter does not exist, or its folder does not fit the backbone it is put on."""


class Adapter:
    """One kind of adapter; it holds no weights itself.

    Attributes:
        has_weights: whether it has weights of its own, which are saved beside the backbone.
        tunes_backbone: whether the backbone's own weights change, so that an artifact has to hold a copy.
        merges: whether it can be folded into the backbone's weights once it is trained. One that cannot is attached in
            serving too, and the plain forward reads it.
        needs_condition: whether it reads what a request brings, `modeling.backbone.adapters.condition`.
    """

    has_weights: ClassVar[bool] = False
    tunes_backbone: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    needs_condition: ClassVar[bool] = False

    def attach(self, backbone: nn.Module, spec: AdapterSpec) -> nn.Module:
        """Freeze ``backbone``, add what ``spec`` says is trained, and return the module to call instead of it.

        The input embeddings stay frozen in every case: a history shows few words, and the other rows must not drift
        away from them through weight decay.
        """
        raise NotImplementedError

    def save(self, adapted: nn.Module, folder: Path, *, source: str) -> None:
        """Write its weights to ``folder``; ``source`` is the backbone's name. Only where it has weights."""
        raise NotImplementedError

    def load(self, backbone: nn.Module, files: Files, spec: AdapterSpec) -> nn.Module:
        """Put saved weights on ``backbone``. Only where it has weights.

        Raises:
            AdapterError: the weights are of another backbone or another adapter.
            ArtifactError: a file is missing or altered.
        """
        raise NotImplementedError

    def merge(self, adapted: nn.Module) -> nn.Module:
        """The backbone with the adapter in its weights; only where it merges."""
        return adapted

    def bare(self, adapted: nn.Module) -> nn.Module:
        """The backbone alone, to be saved; a copy where an adapter stands on it."""
        return adapted
