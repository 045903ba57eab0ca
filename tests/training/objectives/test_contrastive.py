"""Contrastive losses over neighbours: their values, and what gradients reach."""

from __future__ import annotations

import math

import pytest
import torch

from training.objectives.contrastive import NeighbourMix, contrast_logits, info_nce


def test_every_vector_has_one_positive_first_and_all_others_as_negatives() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 5, 3, dtype=torch.float64)
    logits = contrast_logits(first, second, 0.5)
    assert logits.shape == (10, 9)
    both, losses = torch.cat([first, second]), []
    for row in range(10):
        partner = (row + 5) % 10
        products = {other: float(both[row] @ both[other]) / 0.5 for other in range(10) if other != row}
        assert float(logits[row, 0]) == pytest.approx(products[partner])
        assert sorted(logits[row, 1:].tolist()) == pytest.approx(sorted(v for o, v in products.items() if o != partner))
        losses.append(math.log(sum(math.exp(value) for value in products.values())) - products[partner])
    assert float(info_nce(first, second, 0.5)) == pytest.approx(sum(losses) / 10)


def test_lengths_of_vectors_count_and_a_single_pair_has_no_loss() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 4, 3)
    assert float(info_nce(first, second, 1.0)) != pytest.approx(float(info_nce(2 * first, second, 1.0)), abs=1e-3)
    assert float(info_nce(first[:1], second[:1], 1.0)) == 0


def test_the_mix_is_graph_attention_over_text_vectors() -> None:
    torch.manual_seed(0)
    mix = NeighbourMix(6, 4, 0.5).eval()
    user, near, states = torch.randn(2, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 4)
    found = mix(user, near, states).detach()
    map_HC, score_2H = mix.map.weight.detach(), mix.score.weight.detach()[0]
    for row in range(2):
        scores = []
        for place in range(3):
            raw = float(score_2H @ torch.cat([map_HC @ user[row], map_HC @ near[row, place]]))
            scores.append(math.exp(raw if raw > 0 else 0.2 * raw))
        expected = sum(score / sum(scores) * states[row, place] for place, score in enumerate(scores))
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mix.weights(user, near).sum(-1), torch.ones(2))
    mix.train()
    assert not torch.equal(mix(user, near, states), mix(user, near, states)), "weights are dropped in training"


def test_gradients_reach_both_maps_and_the_states() -> None:
    torch.manual_seed(0)
    mix = NeighbourMix(6, 4, 0.0)
    states = torch.randn(2, 3, 4, requires_grad=True)
    info_nce(torch.randn(2, 4), mix(torch.randn(2, 6), torch.randn(2, 3, 6), states), 1.0).backward()
    for weight in (mix.map.weight, mix.score.weight, states):
        assert weight.grad is not None and float(weight.grad.abs().max()) > 0
