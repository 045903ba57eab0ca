"""Provenance of an artifact from its manifest: data, recipe, training and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modeling.artifact.manifest import Manifest
from modeling.methods import method_of

TRAINING = ("epochs", "best_epoch", "steps", "seconds", "stopped_by", "seed", "precision")
"""Fields of the manifest's `training` that are shown."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Data set and split, what was fitted on, quality on the validation split, and the training run."""

    data: str | None = None
    split: str | None = None
    fitted_on: str | None = None
    backbone: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


UNKNOWN = Facts()


def facts_of(manifest: Manifest) -> Facts:
    """Return what a manifest says; raises ArtifactError where the method's record is wrong."""
    method, record = method_of(manifest, manifest.name)
    backbone = method.backbone(record)
    return Facts(
        data=manifest.data,
        split=manifest.split,
        fitted_on=manifest.fitted_on,
        backbone=None if backbone is None else backbone.source,
        metrics=manifest.metrics,
        training={name: manifest.training[name] for name in TRAINING if name in manifest.training},
    )
