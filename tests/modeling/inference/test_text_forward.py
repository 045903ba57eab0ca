"""Last states of many short texts: those of the body, alone and together, each beginning computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import modeling.inference.text_forward as text_forward
from modeling.backbone.loading import load_text_model
from modeling.encoder.prompt import TitleTokens
from modeling.generation.title_space import TitleSpace
from modeling.inference.text_forward import TextForward
from testing.models import ARCHITECTURES, backbone_folder, widened
from testing.products import BOTH_BF16, use_products

__all__ = ["backbone_folder"]  # a fixture

Folder = Callable[[str], Path]
KNOWN = ("qwen3", "llama", "mistral")
# One is the beginning of others, two are equal, and some share a beginning with texts that are longer or shorter.
TEXTS = [[5, 6, 7], [5, 6], [9], [5, 6, 7, 8, 9, 4], [9], [30, *range(20, 60)], [5, 7, 7], [30, 20, 21]]
DISTINCT_BEGINNINGS = 6 + 2 + 1 + 41  # 5, 56, 567, 5678, …, 57, 577, 9, and those of the long one


def body_of(folder: Folder, architecture: str) -> nn.Module:
    body = widened(load_text_model(str(folder(architecture)))[0])
    return cast(nn.Module, body)


def alone(body: Any) -> np.ndarray[Any, Any]:
    with torch.inference_mode():
        return np.stack([body(input_ids=torch.tensor([text])).last_hidden_state[0, -1].numpy() for text in TEXTS])


@pytest.mark.parametrize("architecture", KNOWN)
def test_states_are_those_of_each_text_read_alone(backbone_folder: Folder, architecture: str) -> None:
    body = body_of(backbone_folder, architecture)
    expected = alone(body)
    fast, reason = TextForward.of(body, TEXTS)
    assert fast is not None, reason
    np.testing.assert_allclose(fast(TEXTS).numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fast.read(TEXTS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(alone(body), expected)  # the body itself stays what it is


@pytest.mark.parametrize("products", BOTH_BF16)
def test_half_the_bits_cost_less_than_a_twentieth_of_a_states_length(
    backbone_folder: Folder, products: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_products(products, monkeypatch)
    body = load_text_model(str(backbone_folder("llama")))[0]
    fast, reason = TextForward.of(body, TEXTS, torch.bfloat16)
    assert fast is not None, reason
    expected, found = alone(body), fast.read(TEXTS)
    far = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert found.dtype == np.float32 and 0 < far.max() < 0.05
    assert all(weight.dtype == torch.float32 for weight in body.parameters())


def test_passes_of_any_size_give_the_same_and_progress_counts_texts(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of(backbone_folder, "llama")
    fast, _ = TextForward.of(body, TEXTS)
    assert fast is not None
    for size in (1, 5, 8):
        monkeypatch.setattr(text_forward, "POSITIONS", size)
        done: list[int] = []
        np.testing.assert_allclose(fast.read(TEXTS, progress=done.append), alone(body), rtol=1e-4, atol=1e-4)
        assert sum(done) == len(TEXTS) and len(done) > 1


def test_a_beginning_is_computed_once(backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, _ = TextForward.of(body_of(backbone_folder, "llama"), TEXTS)
    assert fast is not None
    seen: list[int] = []
    whole = fast._stack.mapped

    def counted(layer: int, states_PH: torch.Tensor, turns: Any) -> Any:
        seen.append(len(states_PH))
        return whole(layer, states_PH, turns)

    monkeypatch.setattr(fast._stack, "mapped", counted)
    fast.read(TEXTS)
    multiple = fast._stack.multiple
    assert sum(seen) == -(-DISTINCT_BEGINNINGS // multiple) * multiple
    assert sum(map(len, TEXTS)) > DISTINCT_BEGINNINGS


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(KNOWN)))
def test_other_kinds_of_layers_are_left_to_the_body(backbone_folder: Folder, architecture: str) -> None:
    fast, reason = TextForward.of(load_text_model(str(backbone_folder(architecture)))[0], TEXTS)
    assert fast is None and "not known" in reason


def test_a_forward_that_gives_other_states_is_not_used(
    backbone_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_of(backbone_folder, "llama")
    monkeypatch.setattr(text_forward, "causal_attention", lambda queries, keys, values: queries)
    fast, reason = TextForward.of(body, TEXTS)
    assert fast is None and "differ by" in reason
    tokens = TitleTokens.of_titles([""] * len(TEXTS), lambda titles: TEXTS, limit=100)
    space = TitleSpace.of_catalog(body, tokens, [])
    np.testing.assert_allclose(space.vectors_NH.numpy(), alone(body), rtol=1e-4, atol=1e-4)
