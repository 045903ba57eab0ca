"""The beam search that fits a Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from modeling.generation.beam_search import BeamSearch
from modeling.generation.encoder_decoder import EncoderDecoderBeamSearch
from modeling.generation.token_inputs import TokenInputs


def decoder_of(model: nn.Module) -> nn.Module:
    """The model without its head."""
    given = cast(Any, model)
    return cast(nn.Module, given.get_decoder() if hasattr(model, "get_decoder") else given.base_model)


def beam_search_for(
    model: nn.Module,
    *,
    end_tokens: Sequence[int],
    prefix: Sequence[int] = (),
    inputs: TokenInputs | None = None,
) -> BeamSearch:
    """Return a beam search over a Hugging Face model for causal language modelling, or over an encoder-decoder one.

    Raises:
        ValueError: a prefix or inputs of its own were given for an encoder-decoder model.
    """
    if getattr(cast(Any, model).config, "is_encoder_decoder", False):
        if prefix or inputs is not None:
            raise ValueError("an encoder-decoder model is searched without a prefix and with its own token embeddings")
        return EncoderDecoderBeamSearch(model, end_tokens=end_tokens)
    head = cast(Any, model).get_output_embeddings()
    return BeamSearch(
        decoder_of(model), head.weight, end_tokens=end_tokens, bias_V=getattr(head, "bias", None), prefix=prefix,
        inputs=inputs,
    )  # fmt: skip
