"""Maps in blocks: the plain map's result up to a rounding, whatever stands behind it, and no second copy of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling.backbone.adapters import adapter_of
from modeling.encoder.build import Model
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference import prepacked_linear as blocked
from modeling.inference.encoder_forward import compile_encoder
from modeling.inference.prepacked_linear import (
    PrepackedLinear,
    added,
    all_filled,
    blocks_of,
    filled,
    gated,
    multiple_of,
    prepack,
    prepack_where_faster,
)
from service.artifacts.memory import Pool, share_weights
from testing.models import backbone_folder
from testing.products import BOTH_BF16, use_products

__all__ = ["backbone_folder"]  # a fixture

HISTORIES = [[3], [0, 5, 7, 2, 9, 11, 4], [1, 2], [8, 8, 10, 1], list(range(12))]
ROUNDING = 2**-7
"""Relative: one place of bf16."""


@pytest.fixture(params=BOTH_BF16)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(request.param, monkeypatch)


def maps(*shape: int, bias: bool = False) -> tuple[nn.Linear, PrepackedLinear]:
    torch.manual_seed(sum(shape))
    plain = nn.Linear(*shape, bias=bias).to(torch.bfloat16).requires_grad_(False)
    return plain, PrepackedLinear(plain)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    torch.testing.assert_close(found.float(), expected.float(), rtol=2 * ROUNDING, atol=2 * ROUNDING)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", [(1,), (3,), (61,), (320,), (2, 7)])
def test_a_map_in_blocks_is_the_map(positions: tuple[int, ...], bias: bool) -> None:
    plain, map_ = maps(96, 160, bias=bias)
    states = torch.randn(*positions, 96, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert_close(map_(states), plain(states))
        assert torch.equal(map_(states)[..., :1, :], map_(states[..., :1, :])), "a row depends on no other row"


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("positions", [1, 5, 200])
def test_what_follows_a_product_is_done_by_it(positions: int) -> None:
    (gate, gate_b), (up, up_b), (down, down_b) = maps(64, 96), maps(64, 96, bias=True), maps(96, 64)
    states = torch.randn(positions, 64, dtype=torch.bfloat16)
    before = states.clone()
    with torch.inference_mode():
        expected = F.silu(F.linear(states.float(), gate.weight.float())) * F.linear(
            states.float(), up.weight.float(), up.bias.float()
        )
        for found in (gated(gate, nn.SiLU(), up, states), gated(gate_b, nn.SiLU(), up_b, states)):
            torch.testing.assert_close(found.float(), expected, rtol=4 * ROUNDING, atol=4 * ROUNDING)
        assert_close(gated(gate_b, nn.GELU(), up_b, states), gated(gate, nn.GELU(), up, states))
        inner = torch.randn(positions, 96, dtype=torch.bfloat16)
        assert_close(added(down_b, inner, states), added(down, inner, states))
    assert torch.equal(states, before), "the residual is read, not written to"


@pytest.mark.usefixtures("products")
def test_a_backbone_computes_the_same_and_holds_its_weights_once(backbone_folder: Callable[[str], Path]) -> None:
    from transformers import AutoModel

    path = str(backbone_folder("qwen3"))
    plain, body = (AutoModel.from_pretrained(path, dtype=torch.bfloat16).eval() for _ in range(2))
    linear = sum(type(part) is nn.Linear for part in plain.modules())
    assert prepack(body) == linear > 0 == prepack(body)
    assert not any(type(part) is nn.Linear for part in body.modules())
    assert sum(map(size_of, stored(body))) == sum(map(size_of, stored(plain)))
    ids = torch.arange(3, 15)[None]
    with torch.inference_mode():
        assert_close_states(body(ids).last_hidden_state, plain(ids).last_hidden_state)


def assert_close_states(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.05, atol=0.05)


def stored(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *(part.blocks_OI for part in module.modules() if isinstance(part, PrepackedLinear))]


def size_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.bf16  # plain weights are shared as any others: tests/service/artifacts/test_sharing.py
def test_two_models_share_maps_in_blocks() -> None:
    (plain, first), (_, other) = maps(64, 96), maps(96, 64)
    second = PrepackedLinear(plain)
    pool, kept = Pool(), list[Any]()
    for module in (first, second, other):
        kept += share_weights(pool, module, "weights")
    assert first.blocks_OI is second.blocks_OI and first.blocks_OI is not other.blocks_OI
    assert len({id(piece) for piece in kept}) == 2 and all(piece.bytes == 64 * 96 * 2 for piece in kept)
    states = torch.randn(4, 64, dtype=torch.bfloat16)
    with torch.inference_mode():
        assert_close(second(states), plain(states))


def test_other_types_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    use_products("reference", monkeypatch)
    assert prepack(nn.Sequential(nn.Linear(8, 8))) == 0
    assert prepack(nn.Sequential(nn.Linear(8, 8).to(torch.bfloat16))) == 1


@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_without_such_products_maps_stay_and_compute_the_same(
    architecture: str, small_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_products("plain", monkeypatch)
    plain, states = nn.Linear(8, 8), torch.randn(5, 8, dtype=torch.bfloat16)
    half = nn.Sequential(plain.to(torch.bfloat16))
    assert prepack(half) == 0 and type(half[0]) is nn.Linear and multiple_of(half) == 1
    with torch.inference_mode():
        found = added(plain, states, states.clone()), gated(plain, nn.SiLU(), plain, states)
        exact = F.linear(states.float(), plain.weight.float(), plain.bias.float())
    for each, expected in zip(found, (exact + states.float(), F.silu(exact) * exact), strict=True):
        torch.testing.assert_close(each.float(), expected, rtol=4 * ROUNDING, atol=4 * ROUNDING)
    encoder = small_model("titles", architecture).encoder
    expected_BD = encode(encoder, HISTORIES)
    encoder.backbone = adapter_of("lora").merge(encoder.backbone).to(torch.bfloat16)
    encoder.items.freeze()
    assert prepack(encoder.backbone) == 0 and compile_encoder(encoder) == ""
    assert_same_direction(encode(encoder, HISTORIES), expected_BD)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_an_encoder_gives_its_maps_few_numbers_of_positions(
    architecture: str, small_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the lengths of histories; and its vectors stay those of the plain forward in fp32."""
    encoder = small_model("titles", architecture).encoder
    expected_BD = encode(encoder, HISTORIES)
    encoder.backbone = adapter_of("lora").merge(encoder.backbone).to(torch.bfloat16)
    encoder.items.freeze()
    assert prepack(encoder.backbone) > 0 and compile_encoder(encoder) == ""
    met = products_met(monkeypatch)
    for size in (1, 3):
        for start in range(0, len(HISTORIES), size):
            found_BD = encode(encoder, HISTORIES[start : start + size])
            assert_same_direction(found_BD, expected_BD[start : start + size])
    counts = {count for _, count, *_ in met}
    assert len(counts) > 1 and counts <= set(all_filled(1000, blocked.MULTIPLE))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_no_history_brings_a_product_that_was_not_met_before(
    architecture: str, small_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A product is prepared for its map, its number of positions and what follows it, which takes as long as itself."""
    encoder = small_model("titles", architecture).encoder
    encoder.backbone = adapter_of("lora").merge(encoder.backbone).to(torch.bfloat16)
    encoder.items.freeze()
    assert prepack(encoder.backbone) > 0 and compile_encoder(encoder) == ""
    met = products_met(monkeypatch)
    prompts = [encoder.prepare(history) for history in HISTORIES]
    assert encoder.fast is not None
    encoder.fast.meet_lengths(sum(prompt.length for prompt in prompts))
    before = set(met)
    for size in (1, 2, len(prompts)):
        for start in range(0, len(prompts), size):
            encoder.encode(prompts[start : start + size])
    assert before and met == before


def test_numbers_of_positions_are_few_and_hardly_larger() -> None:
    found = all_filled(640, 16)
    assert found == [4, 8, *range(16, 257, 16)] and all_filled(40, 16) == [4, 8, 16, 32, 48]
    assert [filled(count, 16) for count in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 16] and all_filled(3, 16) == [4]
    for count in range(1, 700):
        filling = filled(count, 16)
        sizes = [block.stop - block.start for block in blocks_of(filling, 16)]
        assert count <= filling < count + 16 and sum(sizes) == filling and set(sizes) <= set(found)
        assert filled(count, 1) == count


@pytest.mark.parametrize("block", [1, 16])
@pytest.mark.parametrize("which", ["reference", "processor"])
@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_where_blocks_are_faster_in_fp32_an_encoder_gives_the_same_vectors(
    architecture: str, which: str, block: int, small_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_products(which, monkeypatch)
    monkeypatch.setattr(blocked, "SMALLEST", 0)
    monkeypatch.setattr(blocked, "BLOCK", block)
    monkeypatch.setattr(blocked, "faster_in_blocks", lambda inputs, outputs: True)
    encoder = small_model("titles", architecture).encoder
    encoder.backbone = adapter_of("lora").merge(encoder.backbone)
    encoder.items.freeze()
    expected_BD = encode(encoder, HISTORIES)
    assert compile_encoder(encoder) == ""
    has_any = which == "reference" or torch.backends.mkldnn.is_available()
    assert any(isinstance(part, PrepackedLinear) for part in encoder.backbone.modules()) == has_any
    np.testing.assert_allclose(encode(encoder, HISTORIES), expected_BD, atol=1e-5)
    np.testing.assert_allclose(encode(encoder, HISTORIES[1:2]), expected_BD[1:2], atol=1e-5)


def test_a_map_alone_fills_up_long_inputs_and_takes_short_ones_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    use_products("reference", monkeypatch)
    plain, map_ = maps(32, 48, bias=True)
    met = products_met(monkeypatch)
    for shape in ((1,), (5, 1), (3, 7), (2, 31), (300,), (5, 63)):
        states = torch.randn(*shape, 32, dtype=torch.bfloat16)
        with torch.inference_mode():
            assert_close(map_(states), plain(states))
    assert {count for _, count, *_ in met} <= {1, 5, *all_filled(1000, blocked.MULTIPLE)}


def test_where_they_are_not_faster_or_maps_are_small_weights_stay_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    use_products("reference", monkeypatch)
    monkeypatch.setattr(blocked, "faster_in_blocks", lambda inputs, outputs: inputs > outputs)
    body = nn.Sequential(nn.Linear(512, 128), nn.Linear(128, 512), nn.Linear(16, 8))
    assert prepack_where_faster(body) == 1
    assert [isinstance(part, PrepackedLinear) for part in body] == [True, False, False]
    assert prepack_where_faster(nn.Linear(512, 128).to(torch.bfloat16)) == 0


def products_met(monkeypatch: pytest.MonkeyPatch) -> set[tuple[Any, ...]]:
    """Filled with every kind of product from now on: what it is, its positions, the map's shape, what follows it."""
    met: set[tuple[Any, ...]] = set()
    kind = type(blocked._found())

    def noting(name: str) -> Callable[..., Any]:
        whole = getattr(kind, name)

        def noted(self: Any, states: torch.Tensor, *more: Any) -> Any:
            map_, then = more[-2:]
            met.add((name, len(states), map_.in_features, map_.out_features, map_.bias is None, then))
            return whole(self, states, *more)

        return noted

    for name in ("alone", "joined"):
        monkeypatch.setattr(kind, name, noting(name))
    return met


def assert_same_direction(found_BD: np.ndarray, expected_BD: np.ndarray) -> None:
    cosines = (found_BD * expected_BD).sum(1) / np.linalg.norm(found_BD, axis=1) / np.linalg.norm(expected_BD, axis=1)
    assert cosines.min() > 0.995


def encode(encoder: UserEncoder, histories: list[list[int]]) -> np.ndarray:
    return encoder.encode([encoder.prepare(history) for history in histories])


def test_products_are_used_where_the_processor_has_them() -> None:
    """The markers of tests ask torch, so this notices a probe of ours that finds nothing any more."""
    has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert (blocked._found() is not None) == bool(has)


@pytest.mark.bf16
def test_operators_that_are_called_otherwise_or_compute_otherwise_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocked._found() is not None
    for broken in (lambda self, weight_OI: self._reorder(2 * weight_OI, None), lambda self: None):
        monkeypatch.setattr(blocked._Products, "reorder", broken)
        assert blocked._found.__wrapped__() is None
