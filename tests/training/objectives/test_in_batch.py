"""The in-batch contrastive loss: equal to the full softmax where it must be, and blind to how popular items are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from training.objectives.base import Candidates, ObjectiveSpec, objective_class, objective_kinds
from training.objectives.softmax import full_softmax
from training.recipes import RecipeError, get_recipe

P, D, N = 12, 8, 12


class Table:
    """Item vectors that stand in a table."""

    def __init__(self, items_ND: Tensor) -> None:
        self.items_ND = items_ND

    def all(self) -> Tensor:
        return self.items_ND

    def of(self, rows_R: Tensor) -> Tensor:
        return self.items_ND[rows_R]


def in_batch(shares_N: np.ndarray, **settings: bool) -> torch.nn.Module:
    spec = ObjectiveSpec(kind="in_batch", **settings)
    return objective_class("in_batch")(spec, Candidates(np.ones(len(shares_N), int), shares_N > 0, shares_N))


def vectors(count: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    users_PD = torch.randn(P, D, generator=generator).requires_grad_()
    return users_PD, torch.randn(count, D, generator=generator).requires_grad_()


def test_objectives_are_found_by_their_files() -> None:
    assert objective_kinds() == ["full", "gbce", "in_batch", "sampled"]
    with pytest.raises(RecipeError, match="'bpr' is not known; allowed are full, gbce, in_batch, sampled"):
        get_recipe("sasrec", ["method.objective.kind=bpr"])
    with pytest.raises(RecipeError, match="'in_batch' is allowed"):
        get_recipe("contriever", ["method.objective.kind=full"])


def test_a_batch_that_holds_every_item_once_is_the_full_softmax_in_value_and_gradient() -> None:
    users_PD, items_ND = vectors()
    targets_P = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    found = in_batch(np.full(N, 1 / N))(users_PD, Table(items_ND), targets_P)
    expected = full_softmax(users_PD, items_ND, targets_P)
    torch.testing.assert_close(found, expected)
    inputs = (users_PD, items_ND)
    for ours, theirs in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_a_user_has_seen_is_no_negative_of_the_batch() -> None:
    users_PD, items_ND = vectors(count=30)
    targets_P = torch.randperm(30, generator=torch.Generator().manual_seed(1))[:P]
    seen_S2 = torch.stack([torch.arange(P).repeat(2), torch.cat([targets_P.roll(1), targets_P.roll(5)])], dim=1)
    found = in_batch(np.full(30, 1 / 30), mask_seen=True, logq=False)(users_PD, Table(items_ND), targets_P, seen_S2)
    logits_PP = users_PD @ items_ND[targets_P].T
    kept_PP = torch.ones(P, P, dtype=torch.bool)
    kept_PP[torch.arange(P), torch.arange(P).roll(1)] = kept_PP[torch.arange(P), torch.arange(P).roll(5)] = False
    logits_PP = logits_PP.masked_fill(~kept_PP, -torch.inf)
    expected = torch.nn.functional.cross_entropy(logits_PP, torch.arange(P), reduction="sum")
    torch.testing.assert_close(found, expected)


def test_a_duplicate_of_the_own_target_is_no_negative() -> None:
    users_PD, items_ND = vectors()
    targets_P = torch.tensor([3, 3, 3, 7] * 3)
    loss = in_batch(np.full(N, 1 / N), logq=False)(users_PD[:4], Table(items_ND), targets_P[:4])
    logits_PN = users_PD[:4] @ items_ND.T
    expected = -sum(logits_PN[row, [3, 7]].log_softmax(-1)[0] for row in range(3))
    # of the fourth, item 3 is a negative as often as it stands in the batch
    expected = expected - (logits_PN[3, 7] - logits_PN[3, [7, 3, 3, 3]].logsumexp(0))
    torch.testing.assert_close(loss, expected)
    lone = in_batch(np.full(N, 1 / N))(users_PD[:3], Table(items_ND), targets_P[:3])
    assert lone.item() == 0.0
    assert not torch.autograd.grad(lone, items_ND)[0].any()


def test_the_symmetric_form_masks_users_with_the_same_target_and_is_the_same_with_sides_changed() -> None:
    users_PD, items_ND = vectors()
    shares_N, every = np.full(N, 1 / N), torch.arange(N)
    one = in_batch(shares_N, symmetric=True)(users_PD, Table(items_ND), every)
    other = in_batch(shares_N, symmetric=True)(items_ND, Table(users_PD), every)
    torch.testing.assert_close(one, other)
    same = in_batch(shares_N, symmetric=True)(users_PD[:3], Table(items_ND), torch.tensor([2, 2, 2]))
    assert same.item() == 0.0


def test_logq_takes_out_the_bias_against_popular_items() -> None:
    """Users who know nothing but popularity: the loss's best logits are log-popularity with the correction, as for the
    full softmax; without it, items of a fifth and of a twentieth of the targets come out alike."""
    rng = np.random.default_rng(0)
    shares_N = np.array([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    expected = torch.from_numpy(np.log(shares_N)).float()
    learned = {}
    for logq in (True, False):
        objective = in_batch(shares_N, logq=logq)
        scores_N = torch.zeros(6, requires_grad=True)
        optimizer = torch.optim.Adam([scores_N], lr=0.03)
        for _ in range(400):
            targets_P = torch.from_numpy(rng.choice(6, 256, p=shares_N))
            optimizer.zero_grad()
            (objective(torch.ones(256, 1), Table(scores_N[:, None]), targets_P) / 256).backward()
            optimizer.step()
        learned[logq] = (scores_N - scores_N.mean()).detach()
    assert (learned[True] - (expected - expected.mean())).abs().max() < 0.15
    assert learned[False][1:].max() - learned[False][1:].min() < 0.15


def test_items_of_earlier_batches_are_negatives_for_all_who_neither_seek_nor_have_seen_them() -> None:
    users_PD, items_ND = vectors(count=20)
    keys_ND = torch.randn(20, D, generator=torch.Generator().manual_seed(5))
    targets_P, rows_Q = torch.arange(P), torch.tensor([15, 3, 15, 19])
    seen_S2 = torch.tensor([[0, 15], [4, 19], [4, 2]])
    shares_N = np.arange(1, 21) / 210
    objective = in_batch(shares_N, mask_seen=True)
    objective.remembered = keys_ND[rows_Q], rows_Q  # type: ignore[assignment]
    found = objective(users_PD, Table(items_ND), targets_P, seen_S2)
    log_expected_N = torch.from_numpy(np.log(shares_N * (P + 4))).float()
    expected = torch.zeros(())
    for position in range(P):
        own = users_PD[position] @ items_ND[position]
        seen = {int(row) for at, row in seen_S2 if at == position} | {position}
        others = [users_PD[position] @ items_ND[row] - log_expected_N[row] for row in range(P) if row not in seen]
        others += [users_PD[position] @ keys_ND[row] - log_expected_N[row] for row in rows_Q if int(row) not in seen]
        expected = expected + torch.stack([own, *others]).logsumexp(0) - own
    torch.testing.assert_close(found, expected)
