"""DLLM2Rec's weights and losses, and a teacher's lists that cannot be misaligned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from training.data.report import DataError
from training.evaluation.teachers.lists import FACTS, Teacher, TeacherLists
from training.objectives.distillation import (
    DistillationSpec,
    ListDistillation,
    TeacherVectors,
    candidate_weights,
    list_divergence,
    ranking_loss,
)

SCORES = torch.tensor([[3.0, 2.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
AGREED = torch.tensor([[True, False, True], [False, False, False]])


def weights(position: float, confidence: float, consistency: float) -> torch.Tensor:
    spec = DistillationSpec(position=position, confidence=confidence, consistency=consistency)
    return candidate_weights(spec, SCORES, AGREED)


def test_weights_sum_to_one_and_each_part_is_what_its_name_says() -> None:
    torch.testing.assert_close(weights(0.3, 0.5, 0.1).sum(-1), torch.ones(2, dtype=torch.float64))
    by_place = torch.tensor([1.0, np.exp(-1), np.exp(-2)], dtype=torch.float64)
    torch.testing.assert_close(weights(1, 0, 0), (by_place / by_place.sum()).expand(2, 3))
    by_score = SCORES.exp() / SCORES.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(weights(0, 1, 0), by_score, atol=1e-7, rtol=0)
    torch.testing.assert_close(weights(0, 1, 0)[1], torch.full((3,), 1 / 3, dtype=torch.float64))
    agreed = torch.tensor([[0.5, 0.0, 0.5], [1 / 3, 1 / 3, 1 / 3]], dtype=torch.float64)
    torch.testing.assert_close(weights(0, 0, 1), agreed, atol=1e-7, rtol=0)


def test_the_loss_is_weighted_binary_cross_entropy() -> None:
    candidates, negatives = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    each = F.binary_cross_entropy_with_logits(candidates, torch.ones_like(candidates), reduction="none")
    other = F.binary_cross_entropy_with_logits(negatives, torch.zeros_like(negatives), reduction="none")
    given = weights(0.3, 0.5, 0.1)
    torch.testing.assert_close(ranking_loss(given, candidates, negatives), (given * (each + other[:, None])).sum())


def test_it_teaches_the_order_and_leaves_positions_without_a_list_alone() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(4, 20, requires_grad=True), torch.eye(20)
    rows = torch.tensor([[3, 5, 7], [-1, -1, -1], [1, 2, 4], [9, 8, 6]])
    loss = ListDistillation(DistillationSpec(ranking=2.0, candidates=3))
    (gradient,) = torch.autograd.grad(loss(users, items, rows, torch.zeros(4, 3)), users)
    assert gradient[1].abs().max() == 0 and (gradient[[0, 2, 3]].abs().sum(-1) > 0).all()
    optimizer = torch.optim.Adam([users], 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(users, items, rows, torch.zeros(4, 3)).backward()
        optimizer.step()
    best = (users @ items.T).topk(6).indices[[0, 2, 3]].tolist()
    assert all(set(wanted) <= set(found) for wanted, found in zip(rows[[0, 2, 3]].tolist(), best, strict=True))


def test_the_divergence_is_least_for_the_teacher_s_distribution_over_the_list() -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 3, dtype=torch.float64)
    wanted, found = (torch.softmax(each / 2, -1) for each in (SCORES, student))
    expected = 4 * (wanted * (wanted / found).log()).sum()
    torch.testing.assert_close(list_divergence(SCORES, student, 2.0), expected)
    zero = list_divergence(SCORES, SCORES + torch.tensor([[5.0], [-3.0]]), 2.0)
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-12, rtol=0)


def test_a_student_takes_the_teacher_s_odds_of_listed_items_and_nothing_for_others() -> None:
    torch.manual_seed(0)
    users, items = torch.randn(3, 12, requires_grad=True), torch.eye(12)
    rows, scores = torch.tensor([[3, 5, 7], [-1, -1, -1], [1, 2, 4]]), torch.tensor([[2.0, 0.5, -1.0]] * 3)
    loss = ListDistillation(DistillationSpec(divergence=1.0, candidates=3, temperature=2.0))
    (gradient,) = torch.autograd.grad(loss(users, items, rows, scores), users)
    listed = torch.zeros(3, 12, dtype=torch.bool)
    listed[0, [3, 5, 7]] = listed[2, [1, 2, 4]] = True
    assert ((gradient != 0) == listed).all()
    optimizer = torch.optim.Adam([users], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        loss(users, items, rows, scores).backward()
        optimizer.step()
    odds = (users @ items.T)[0, [3, 5, 7]]
    torch.testing.assert_close(odds - odds[0], scores[0] - scores[0, 0], atol=0.02, rtol=0)


def test_the_teacher_s_vectors_are_folded_into_the_table() -> None:
    torch.manual_seed(0)
    table, vectors = nn.Embedding(7, 4), torch.randn(6, 10)
    own = table.weight.detach().clone()
    parametrize.register_parametrization(table, "weight", TeacherVectors(vectors, 4, 0.3))
    rows = torch.tensor([0, 5, 6])
    shown = table(rows).detach()
    expected = own.clone()
    unit = F.normalize(vectors, dim=-1) * 10**0.5
    expected[:6] += 0.3 * unit @ table.parametrizations.weight[0].map.weight.T.detach()  # type: ignore[index,union-attr]
    torch.testing.assert_close(shown, expected[rows])
    parametrize.remove_parametrizations(table, "weight", leave_parametrized=True)
    assert list(table.state_dict()) == ["weight"]
    torch.testing.assert_close(table(rows), shown)


def teacher(rows: int = 6, top: int = 4) -> Teacher:
    rng = np.random.default_rng(0)
    return Teacher(
        {"artifact": "a"}, np.arange(rows) // 3, np.arange(rows) % 3 + 1, rng.integers(0, 9, (rows, top)),
        rng.normal(size=(rows, top)).astype(np.float32), np.eye(9, dtype=np.float32), np.zeros((rows, 2), np.float32),
    )  # fmt: skip


def test_lists_are_found_by_user_and_position_in_whatever_order_they_stand() -> None:
    given = teacher()
    order = np.array([4, 0, 5, 2, 1, 3])
    mixed = replace(
        given, users_R=given.users_R[order], positions_R=given.positions_R[order], rows_RK=given.rows_RK[order],
        scores_RK=given.scores_RK[order],
    )  # fmt: skip
    users, positions = np.array([1, 0, 1, 2]), np.array([2, 3, 9, 1])
    for lists in (TeacherLists(given, 3), TeacherLists(mixed, 3)):
        rows, scores = lists(users, positions)
        assert rows[:2].tolist() == given.rows_RK[[4, 2], :3].tolist()
        np.testing.assert_array_equal(scores[:2], given.scores_RK[[4, 2], :3])
        assert rows[2:].tolist() == [[-1] * 3] * 2, "no list of another row"
    with pytest.raises(DataError, match="have 4 items, and 5 are wanted"):
        TeacherLists(given, 5)


def test_what_is_written_is_read_and_other_keys_are_refused(tmp_path: Path) -> None:
    given = teacher()
    given.write(tmp_path)
    found = Teacher.read(tmp_path)
    np.testing.assert_array_equal(found.rows_RK, given.rows_RK)
    facts = (tmp_path / FACTS).read_text()
    replace(given, positions_R=given.positions_R[::-1].copy()).write(tmp_path)
    (tmp_path / FACTS).write_text(facts)
    with pytest.raises(DataError, match="not those that the lists were written for"):
        Teacher.read(tmp_path)
    with pytest.raises(DataError, match="is no teacher"):
        Teacher.read(tmp_path / "nothing")


def test_the_control_gives_lists_of_other_rows() -> None:
    given = teacher(60)
    shuffled = given.shuffled(3)
    assert (shuffled.users_R == given.users_R).all()
    assert (shuffled.rows_RK != given.rows_RK).any(1).mean() > 0.9
    assert sorted(map(tuple, shuffled.rows_RK)) == sorted(map(tuple, given.rows_RK))
