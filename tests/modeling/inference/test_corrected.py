"""Two tuned models on one backbone: one set of weights, the same outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modeling.backbone.adapters import adapter_of
from modeling.inference import prepacked_linear
from modeling.inference.prepacked_linear import PrepackedLinear, multiple_of, prepack_where_faster
from modeling.inference.shared_base_weights import SharedBaseLinear, correct
from modeling.spec import AdapterSpec
from testing.products import use_products


def backbone(seed: int = 0) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=50, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=32,
        intermediate_size=192,
    )  # fmt: skip
    return Qwen3Model(config).eval()


def tuned(base: nn.Module, seed: int, rank: int = 4) -> Any:
    """With an adapter of its own, merged."""
    adapted = adapter_of("lora").attach(copy.deepcopy(base), AdapterSpec(kind="lora", rank=rank, alpha=8, dropout=0.0))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return adapter_of("lora").merge(adapted).eval().requires_grad_(False)


def states(model: Any) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(input_ids=torch.arange(24).view(2, 12)).last_hidden_state
        return out


@pytest.mark.parametrize("other_is_tuned", [True, False])
def test_outputs_stay_and_weights_are_the_others(other_is_tuned: bool) -> None:
    base = backbone()
    one, other = tuned(base, 1), tuned(base, 2) if other_is_tuned else base
    expected = states(one)
    assert (states(other) - expected).abs().max() > 0.1
    maps = sum(type(each) is nn.Linear for each in one.modules())
    assert correct(one, other) == maps == 14
    torch.testing.assert_close(states(one), expected, atol=2e-5, rtol=0)
    theirs = dict(other.named_modules())
    for name, each in one.named_modules():
        if isinstance(each, SharedBaseLinear):
            assert each.weight.data_ptr() == theirs[name].weight.data_ptr()
            assert each.right_KI.shape[0] == (8 if other_is_tuned else 4), "the rank of the difference, no more"


@pytest.mark.parametrize("mine_is_tuned", [True, False])
def test_weights_in_blocks_are_read_as_they_stand(mine_is_tuned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepacked_linear, "SMALLEST", 0)
    monkeypatch.setattr(prepacked_linear, "faster_in_blocks", lambda inputs, outputs: True)
    use_products("reference", monkeypatch)
    base = backbone()
    one, other = tuned(base, 1) if mine_is_tuned else copy.deepcopy(base), tuned(base, 2)
    if not mine_is_tuned:
        other = copy.deepcopy(base)
    expected = states(one)
    assert prepack_where_faster(other) == 14 == correct(one, other)
    torch.testing.assert_close(states(one), expected, atol=2e-5, rtol=0)
    mine = {id(each) for each in one.modules() if isinstance(each, PrepackedLinear)}
    assert mine == {id(each) for each in other.modules() if isinstance(each, PrepackedLinear)}
    assert multiple_of(one) == prepacked_linear.MULTIPLE


def test_a_bias_that_the_others_products_add_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    use_products("reference", monkeypatch)
    torch.manual_seed(0)
    plain, other = nn.Linear(8, 8), nn.Linear(8, 8)
    found = SharedBaseLinear(PrepackedLinear(other), plain.weight - other.weight, torch.eye(8), plain.bias.detach())
    given = torch.randn(3, 8)
    with torch.inference_mode():
        torch.testing.assert_close(found(given), plain(given), atol=1e-5, rtol=1e-5)


def test_what_was_tuned_whole_keeps_its_weights() -> None:
    base = backbone()
    whole = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in whole.layers.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    expected = states(whole)
    assert correct(whole, base) == 0
    assert torch.equal(states(whole), expected)


def test_another_backbone_is_left_alone() -> None:
    one = tuned(backbone(0), 1)
    assert correct(one, tuned(backbone(5), 2)) == 0 and correct(one, nn.Linear(2, 2)) == 0
    assert not any(isinstance(each, SharedBaseLinear) for each in one.modules())
