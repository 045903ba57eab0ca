"""Eight-bit maps: exact products or none; vectors that stay close, whatever the batch; a quarter of the memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modeling.backbone.adapters import adapter_of
from modeling.encoder.build import Model
from modeling.encoder.user_encoder import UserEncoder
from modeling.inference.encoder_forward import compile_encoder
from modeling.inference.int8_linear import Int8Linear, PrecisionError, Rows, quantise, read_once
from modeling.inference.prefix_cache import PrefixCache
from testing.products import BOTH_INT8, use_products

Build = Callable[..., Model]
HISTORIES = [[3], [0, 5, 7, 2, 9, 11, 4], [1, 2], [8, 8, 10, 1], list(range(12))]


@pytest.fixture(params=BOTH_INT8)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(request.param, monkeypatch)


def rounded(model: Model) -> UserEncoder:
    """An encoder as an artifact is loaded in int8, and sped up."""
    encoder = model.encoder
    encoder.backbone = adapter_of("lora").merge(encoder.backbone)
    encoder.items.freeze()
    quantise(encoder.backbone)
    compile_encoder(encoder)
    return encoder


def encode(encoder: UserEncoder, histories: list[list[int]]) -> np.ndarray:
    return encoder.encode([encoder.prepare(history) for history in histories])


def test_rows_are_rounded_each_by_its_own_largest() -> None:
    states_PI = torch.tensor([[1.0, -127.0, 0.4, 63.6], [0.0, 0.0, 0.0, 0.0], [1e-3, -2e-3, 0.0, 1e-3]])
    rows = Rows.of(states_PI)
    assert rows.integers_PI.tolist() == [[1, -127, 0, 64], [0, 0, 0, 0], [64, -127, 0, 64]]
    torch.testing.assert_close(rows.integers_PI * rows.scales_P1, states_PI, atol=0.5, rtol=0.0)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("bias", [True, False])
def test_a_map_multiplies_what_is_rounded_exactly(bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 40, bias=bias)
    rounded_map, given = Int8Linear(plain), torch.randn(3, 5, 96)
    rows = Rows.of(given.reshape(15, 96))
    weight_OI = rounded_map.integers_OI * rounded_map.scales_O[:, None]
    expected = nn.functional.linear(rows.integers_PI * rows.scales_P1, weight_OI, plain.bias).view(3, 5, 40)
    torch.testing.assert_close(rounded_map(given), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rounded_map(rows), expected.view(15, 40), atol=1e-5, rtol=1e-5)
    assert (expected - plain(given)).abs().max() < 0.03
    assert isinstance(read_once(rounded_map, given), Rows) and read_once(plain, given) is given


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "mistral", "bert", "gemma3", "opt"])
@pytest.mark.parametrize("form", ["titles", "compressed"])
def test_vectors_stay_close_and_do_not_depend_on_the_batch(form: str, architecture: str, small_model: Build) -> None:
    model = small_model(form, architecture)
    expected = encode(model.encoder, HISTORIES)
    assert model.encoder.exact
    encoder = rounded(model)
    assert not encoder.exact
    found = encode(encoder, HISTORIES)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.99 and not np.array_equal(found, expected)
    alone = np.concatenate([encode(encoder, [history]) for history in HISTORIES])
    np.testing.assert_allclose(alone, found, atol=5e-3)  # a rounding may fall the other way


@pytest.mark.usefixtures("products")
def test_a_user_who_comes_back_has_the_same_vector(small_model: Build) -> None:
    encoder = rounded(small_model("titles"))
    assert encoder.fast is not None
    states = PrefixCache(encoder.fast, 1 << 20)
    states.encode([encoder.prepare([4, 2])])
    found = states.encode([encoder.prepare([4, 2, 9, 1])])
    assert states.hits == 1
    np.testing.assert_allclose(found, encode(encoder, [[4, 2, 9, 1]]), atol=5e-3)


@pytest.mark.usefixtures("products")
def test_maps_take_a_quarter(small_model: Build) -> None:
    backbone = small_model("compressed").encoder.backbone
    maps = [each for each in backbone.modules() if type(each) is nn.Linear]
    before = sum(each.weight.nbytes for each in maps)
    assert quantise(backbone) == len(maps)
    after = [each for each in backbone.modules() if isinstance(each, Int8Linear)]
    assert sum(each.integers_OI.nbytes for each in after) == before / 4
    assert not any(type(each) is nn.Linear for each in backbone.modules())


@pytest.mark.usefixtures("products")
def test_a_network_without_maps_of_the_usual_kind_is_refused(small_model: Build) -> None:
    with pytest.raises(PrecisionError, match="GPT2Model has no linear maps of the usual kind"):
        rounded(small_model("compressed", "gpt2"))


@pytest.mark.linux  # where environment variables hide instructions
def test_products_that_overflow_are_noticed() -> None:
    """Without VNNI, pairs of products are added in 16 bits and saturate: wrong sums, in silence."""
    code = (
        "import torch; from modeling.inference.int8_linear import PrecisionError, exact_products, quantise\n"
        "right = int(torch._int_mm(torch.full((1, 512), 127, dtype=torch.int8), "
        "torch.full((512, 1), 127, dtype=torch.int8))[0, 0]) == 512 * 127 * 127\n"
        "assert exact_products() == right, right\n"
        "try: quantise(torch.nn.Sequential(torch.nn.Linear(8, 8)))\n"
        "except PrecisionError as error: assert not right and 'use fp32 or auto' in str(error)\n"
        "else: assert right\n"
    )
    for instructions in ("DEFAULT", "AVX2"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert found.returncode == 0, (instructions, found.stderr)
