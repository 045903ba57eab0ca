"""Losses: the cheap forms equal the plain one where they must, in value and in gradient."""

from __future__ import annotations

import math

import pytest
import torch

from training.objectives.anchor import anchor_loss, anchor_weight
from training.objectives.softmax import full_softmax, sampled_softmax

P, D, N = 23, 8, 57


def _inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    users = torch.randn(P, D, generator=generator, dtype=torch.float64).requires_grad_()
    items = torch.randn(N, D, generator=generator, dtype=torch.float64).requires_grad_()
    return users, items, torch.randint(0, N, (P,), generator=generator)


def _with_gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.mark.parametrize("chunk", [1, 7, 56, 57, 500])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_equals_full(chunk: int, smoothing: float) -> None:
    users, items, targets = _inputs()
    plain = torch.nn.functional.cross_entropy(users @ items.T, targets, reduction="sum", label_smoothing=smoothing)
    ours = full_softmax(users, items, targets, label_smoothing=smoothing, chunk=chunk)
    for expected, found in zip(_with_gradients(plain, users, items), _with_gradients(ours, users, items), strict=True):
        torch.testing.assert_close(found, expected)


def test_sampled_with_all_items_equals_full() -> None:
    users, items, targets = _inputs()
    everything, certain = torch.arange(N), torch.zeros(N, dtype=torch.float64)
    ours = sampled_softmax(users, items, targets, everything, certain)
    plain = full_softmax(users, items, targets, chunk=N)
    for expected, found in zip(_with_gradients(plain, users, items), _with_gradients(ours, users, items), strict=True):
        torch.testing.assert_close(found, expected)


def test_logq_brings_the_sampled_loss_to_the_full_one() -> None:
    """With popularity-skewed draws the corrected estimate nears the full loss; without correction it does not."""
    users, items, targets = _inputs(3)
    popularity = torch.linspace(0.1, 5, N, dtype=torch.float64)
    popularity /= popularity.sum()
    full = full_softmax(users, items, targets).item()
    draws = 20_000
    negatives = torch.multinomial(popularity, draws, replacement=True, generator=torch.Generator().manual_seed(1))
    corrected = sampled_softmax(users, items, targets, negatives, (popularity * draws).log()).item()
    uncorrected = sampled_softmax(users, items, targets, negatives, torch.full((N,), math.log(draws / N)).double())
    assert abs(corrected - full) / full < 0.01
    assert abs(uncorrected.item() - full) > 5 * abs(corrected - full)


def test_a_drawn_target_is_no_negative_of_its_own_row() -> None:
    users, items, targets = _inputs()
    negatives = targets[:1].repeat(64)
    loss = sampled_softmax(users[:1], items, targets[:1], negatives, torch.zeros(N, dtype=torch.float64))
    assert loss.item() == 0.0


def _seen() -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of positions and rows, none of them a target, and the same as a mask [P, N]."""
    _, _, targets = _inputs()
    mask = torch.rand(P, N, generator=torch.Generator().manual_seed(5)) < 0.3
    mask[torch.arange(P), targets] = False
    return mask.nonzero(), mask


@pytest.mark.parametrize("chunk", [7, 57])
def test_what_was_seen_is_as_if_it_were_in_no_catalog(chunk: int) -> None:
    users, items, targets = _inputs()
    pairs, mask = _seen()
    plain = torch.nn.functional.cross_entropy((users @ items.T).masked_fill(mask, -torch.inf), targets, reduction="sum")
    everything, certain = torch.arange(N), torch.zeros(N, dtype=torch.float64)
    for loss in (
        full_softmax(users, items, targets, chunk=chunk, seen_S2=pairs),
        sampled_softmax(users, items, targets, everything, certain, seen_S2=pairs),
    ):
        expected = _with_gradients(plain, users, items)
        for wanted, found in zip(expected, _with_gradients(loss, users, items), strict=True):
            torch.testing.assert_close(found, wanted)
        plain = torch.nn.functional.cross_entropy(
            (users @ items.T).masked_fill(mask, -torch.inf), targets, reduction="sum"
        )
    with pytest.raises(ValueError, match="label smoothing"):
        full_softmax(users, items, targets, label_smoothing=0.1, seen_S2=pairs)


def test_a_constant_on_all_logits_changes_nothing() -> None:
    users, items, targets = _inputs()
    wide_users = torch.cat([users, torch.ones(P, 1, dtype=torch.float64)], 1)
    wide_items = torch.cat([items, torch.full((N, 1), 7.0, dtype=torch.float64)], 1)
    torch.testing.assert_close(full_softmax(wide_users, wide_items, targets), full_softmax(users, items, targets))


def test_the_pull_decays_to_zero_and_then_stays() -> None:
    assert [anchor_weight(0.2, progress, 0.5) for progress in (0, 0.25, 0.5, 0.9)] == [0.2, 0.1, 0.0, 0.0]
    table = torch.tensor([[1.0, 2.0]])
    assert anchor_loss(table, torch.zeros(1, 2)).item() == 2.5
