"""The graph that other runtimes are given computes what the encoder computes, whatever stands behind a row's end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.encoder.peer_graph import PaddedBody, padded_inputs
from modeling.encoder.build import Model
from modeling.inference.encoder_forward import EncoderForward, compile_encoder
from modeling.spec import AdapterSpec, ItemsSpec
from testing.models import backbone_folder, small_model

__all__ = ["backbone_folder", "small_model"]  # fixtures


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_padded_rows_give_the_vectors_of_the_encoder(architecture: str, small_model: Callable[..., Model]) -> None:
    items = ItemsSpec(tower="id", dim=16)
    encoder = small_model("titles", architecture, adapter=AdapterSpec(kind="none"), items=items).encoder
    assert compile_encoder(encoder) == ""
    fast = encoder.fast
    assert isinstance(fast, EncoderForward)
    prompts = [encoder.prepare(history) for history in ([3], [1, 2, 3, 4, 5], [0, 9])]
    embeds_BTH, last_B = padded_inputs(fast, prompts)
    assert len({prompt.length for prompt in prompts}) == 3 and embeds_BTH.shape[1] == last_B.max() + 1
    behind_BT = np.arange(embeds_BTH.shape[1]) > last_B[:, None]
    embeds_BTH[behind_BT] = 7.0
    with torch.inference_mode():
        states_BH = PaddedBody(encoder.backbone).eval()(torch.from_numpy(embeds_BTH), torch.from_numpy(last_B))
        found = encoder.finish(states_BH, encoder.recent(prompts), None).numpy()
    np.testing.assert_allclose(found, encoder.encode(prompts), atol=1e-5)


def test_an_unknown_family_has_no_graph(small_model: Callable[..., Model]) -> None:
    with pytest.raises(ValueError, match="layers of GPT2Model are not known"):
        PaddedBody(small_model("titles", "gpt2", adapter=AdapterSpec(kind="none")).encoder.backbone)
