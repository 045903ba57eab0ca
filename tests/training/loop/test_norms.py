"""training/loop/fused_rms_norm.py: the same norm as the library's, but for what bf16 rounds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from testing.models import backbone_folder
from training.loop.fused_rms_norm import NORMS, fused_rms_norms

__all__ = ["backbone_folder"]


@pytest.fixture(scope="module")
def model(backbone_folder: Callable[[str], Path]) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    found = AutoModelForCausalLM.from_pretrained(str(backbone_folder("qwen3")), dtype=torch.float32).train()
    for name, parameter in found.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return found


def gradients(model: Any, ids_BT: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        states_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    loss = states_BTH.float().tanh().square().sum()
    loss.backward()
    found = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    return loss.item(), found


def test_loss_and_gradients_are_those_of_the_plain_norms(model: Any) -> None:
    """As near to fp32 as the plain norms in mixed precision are; every norm inside the layers takes part."""
    ids_BT = torch.randint(0, 100, (3, 17), generator=torch.Generator().manual_seed(1))
    states_BTH = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    model.zero_grad()
    states_BTH.tanh().square().sum().backward()
    exact = {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
    plain_loss, plain = gradients(model, ids_BT)
    with fused_rms_norms(model) as count:
        assert count == 4 * model.config.num_hidden_layers
        lean_loss, lean = gradients(model, ids_BT)
    assert lean_loss == pytest.approx(plain_loss, rel=1e-2) and lean_loss != plain_loss
    assert lean.keys() == plain.keys() == exact.keys()
    for name, expected in exact.items():
        far = (lean[name] - expected).norm() / expected.norm()
        assert far < 0.02 + 2 * (plain[name] - expected).norm() / expected.norm(), name


def test_outside_of_training_nothing_changes(model: Any) -> None:
    """Evaluation between epochs, fp32, and afterwards."""
    ids_BT = torch.arange(12)[None]

    def states(model: Any = model) -> torch.Tensor:
        return model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state

    before = states()
    kinds = [type(module) for module in model.modules()]
    with fused_rms_norms(model):
        assert torch.equal(states(), before), "no mixed precision"
        model.eval()
        with torch.autocast("cpu", torch.bfloat16):
            evaluated = states()
        model.train()
    assert [type(module) for module in model.modules()] == kinds
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(states(), evaluated)
    model.train()


def test_a_copy_reads_its_own_weights(model: Any) -> None:
    ids_BT = torch.arange(12)[None]
    with fused_rms_norms(model):
        other = copy.deepcopy(model)
        _, before = gradients(model, ids_BT)
        for name, parameter in other.named_parameters():
            if "norm" in name:
                torch.nn.init.constant_(parameter, 2.0)
        assert {type(module).__name__ for module in other.modules()} & set(NORMS)
        loss, _ = gradients(other, ids_BT)
        again, after = gradients(model, ids_BT)
    assert loss != again and all(torch.equal(before[name], after[name]) for name in before)
