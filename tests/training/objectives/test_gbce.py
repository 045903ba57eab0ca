"""gBCE: plain binary cross-entropy without calibration, and probabilities that come out right with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.objectives.base import Candidates, ObjectiveSpec
from training.objectives.gbce import GeneralisedBce, beta_of, gbce

POSITIVE = torch.linspace(-30, 30, 9, dtype=torch.float64)
NEGATIVE = torch.linspace(-30, 30, 9 * 4, dtype=torch.float64).view(9, 4)


def test_without_calibration_it_is_binary_cross_entropy() -> None:
    assert beta_of(4, 100, 0.0) == 1.0
    scores = torch.cat([POSITIVE[:, None], NEGATIVE], 1)
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1
    plain = F.binary_cross_entropy_with_logits(scores, labels, reduction="none").mean(1).sum()
    torch.testing.assert_close(gbce(POSITIVE, NEGATIVE, beta_of(4, 100, 0.0)), plain)


@pytest.mark.parametrize(("negatives", "calibration", "beta"), [(99, 0.75, 1.0), (25, 1.0, 25 / 99), (500, 1.0, 1.0)])
def test_beta_is_one_with_all_negatives_and_their_share_where_fully_calibrated(
    negatives: int, calibration: float, beta: float
) -> None:
    assert beta_of(negatives, 100, calibration) == pytest.approx(beta)


def test_it_is_binary_cross_entropy_of_a_power_of_the_target_s_probability() -> None:
    beta, positive = 0.3, torch.tensor([-4.0, 0.0, 5.0], dtype=torch.float64)
    negative = torch.zeros(3, 1, dtype=torch.float64)
    expected = -(positive.sigmoid() ** beta).log().sum() + 3 * math.log(2)
    torch.testing.assert_close(gbce(positive, negative, beta), expected / 2)


class Items:
    def __init__(self, vectors_ND: Tensor) -> None:
        self.vectors_ND = vectors_ND

    def all(self) -> Tensor:
        return self.vectors_ND

    def of(self, rows_R: Tensor) -> Tensor:
        return self.vectors_ND[rows_R]


def test_negatives_are_drawn_evenly_and_the_target_is_corrected() -> None:
    torch.manual_seed(0)
    size, draws, calibration = 50, 10, 0.6
    everything = np.ones(size, np.int64)
    spec = ObjectiveSpec(kind="gbce", negatives=draws, calibration=calibration)
    loss = GeneralisedBce(spec, Candidates(everything, everything > 0, everything / size))
    scores = torch.linspace(-3, 3, size, dtype=torch.float64)[:, None]
    users, targets = torch.ones(2, 1, dtype=torch.float64), torch.tensor([4, 40])
    found = np.mean([loss(users, Items(scores), targets).item() for _ in range(2000)])
    beta = beta_of(draws, size, calibration)
    assert 0.3 < beta < 0.7
    expected = beta * F.softplus(-scores[targets]).sum() + 2 * draws * F.softplus(scores).mean()
    assert found == pytest.approx(expected.item() / (draws + 1), rel=0.02)


def test_items_that_nobody_chose_are_never_drawn() -> None:
    chosen = np.array([True, False, True])
    loss = GeneralisedBce(ObjectiveSpec(kind="gbce", negatives=500), Candidates(chosen.astype(int), chosen, chosen / 2))
    items = torch.tensor([[0.0], [1e4], [0.0]])
    assert loss(torch.ones(1, 1), Items(items), torch.tensor([0])).item() < 1
