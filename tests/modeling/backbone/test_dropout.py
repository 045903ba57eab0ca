"""Dropout: the share that is asked for, the mean kept, the same elements in the backward pass, new ones each time."""

from __future__ import annotations

import pytest
import torch

from modeling.backbone.dropout import Dropout, drop


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_drops_its_share_and_keeps_the_mean(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = torch.ones(37, 5501, dtype=dtype, requires_grad=True)
    kept = drop(states, share, True)
    assert kept.shape == states.shape and kept.dtype == dtype
    assert float((kept == 0).float().mean()) == pytest.approx(share, abs=0.005)
    if share < 0.99:
        assert float(kept.detach().float().mean()) == pytest.approx(1, abs=0.03)
    kept.sum().backward()
    assert states.grad is not None and torch.equal(states.grad, kept.detach())


def test_elements_are_dropped_on_their_own() -> None:
    """Four share one draw, and no two places of it go together, nor do rows or two calls."""
    torch.manual_seed(1)
    first, second = (drop(torch.ones(4096, 64), 0.5, True).bool().float() - 0.5 for _ in range(2))
    places_64x64 = first.T @ first / len(first)
    assert float((places_64x64 - 0.25 * torch.eye(64)).abs().max()) < 0.02
    assert abs(float((first[:-1] * first[1:]).mean())) < 0.002 and abs(float((first * second).mean())) < 0.002


def test_a_seed_repeats_it_and_evaluation_has_none() -> None:
    module, states = Dropout(0.3), torch.randn(9, 7)
    torch.manual_seed(5)
    first = module(states)
    torch.manual_seed(5)
    assert torch.equal(module(states), first) and not torch.equal(module(states), first)
    assert module.eval()(states) is states and drop(states, 0.0, True) is states
