"""A decoder with its ``lm_head``, for a stage of training that predicts tokens under attention of the caller's choice.

Nothing that is served comes through here: an artifact holds the body alone.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.verified import Folder
from modeling.backbone.loading import BackboneError, backbone_files, body_config, head_of, is_encoder, prove_attention
from modeling.backbone.pretrained import read_model
from modeling.spec import BackboneSpec


def load_with_head(spec: BackboneSpec, *, folder: Folder | None = None, download: bool = False) -> nn.Module:
    """A Hugging Face model for causal language modelling in fp32, its attention proved.

    Args:
        spec: which one, its attention, how many layers.
        folder: load from here instead of ``spec.source``.
        download: whether a hub may be asked for what is not on this machine.

    Raises:
        BackboneError: not found, it has no head, or its attention is not the one asked for.
    """
    from transformers import AutoModelForCausalLM

    try:
        files = backbone_files(spec.source, folder, spec.revision, download)
        config = body_config(spec, files)
        if is_encoder(config) or head_of(config) == "none":
            raise BackboneError(
                f"backbone {spec.source!r} has no lm_head that predicts the next token: a decoder for language "
                "modelling is needed, or no steps of masked next-token prediction"
            )
        model, _ = read_model(AutoModelForCausalLM, files, config, dtype=torch.float32, layers=spec.layers)
    except (ArtifactError, OSError) as error:
        raise BackboneError(f"backbone {spec.source!r} cannot be loaded: {error}") from error
    model.eval()
    prove_attention(model.base_model, causal=spec.attention == "causal")
    return cast(nn.Module, model)
