"""Distillation of a teacher's lists: its order (DLLM2Rec, Cui et al. 2024), or the distribution of its scores over the
items of a list (Hinton et al. 2015), as for a cross-encoder that has read the history together with each candidate.

Shape legend: P positions with a target, K candidates of the teacher, N items, C width of the teacher's item vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from modeling.spec import Section

SMALL = 1e-8
"""Added to confidence and consistency, so that no weight is zero."""


class DistillationSpec(Section):
    """Settings of distillation from a teacher's lists and item vectors; nothing by default."""

    ranking: float = Field(0.0, ge=0, description="weight of the loss over the teacher's best items (lambda)")
    candidates: int = Field(10, ge=1, description="number of best items of the teacher per target (K)")
    position: float = Field(0.3, ge=0, description="weight of the rank in the teacher's list")
    confidence: float = Field(0.5, ge=0, description="weight of the teacher's scores")
    consistency: float = Field(0.1, ge=0, description="weight of being among the student's own best items")
    embedding: float = Field(0.0, ge=0, description="weight of the mapped item vectors of the teacher in the id table")
    divergence: float = Field(
        0.0,
        ge=0,
        description="weight of the divergence (KL) of the student's scores of the listed items from the teacher's",
    )
    temperature: float = Field(1.0, gt=0, description="divisor of both models' scores in the divergence")
    shuffled: bool = Field(False, description="control: the teacher's lists are those of other users")

    @property
    def reads_lists(self) -> bool:
        """Whether a loss is taken over the teacher's lists."""
        return self.ranking > 0 or self.divergence > 0

    @property
    def used(self) -> bool:
        """Whether a teacher is needed."""
        return self.reads_lists or self.embedding > 0


def candidate_weights(spec: DistillationSpec, scores_PK: Tensor, agreed_PK: Tensor) -> Tensor:
    """Weights [P, K] of the teacher's candidates, best first; each row sums to one.

    Position: ``exp(-rank)``. Confidence: ``exp(score)``, which is ``exp(-distance)`` where scores are distances with a
    minus. Consistency: whether the student has the candidate among its own best. Each is normalised over the
    candidates before they are added with their weights.

    Args:
        spec: the three weights; one of them at least is over zero.
        scores_PK: of the teacher.
        agreed_PK: whether a candidate is among the student's own best K.
    """
    count = scores_PK.shape[1]
    position_K = torch.softmax(-torch.arange(count, dtype=scores_PK.dtype, device=scores_PK.device), 0)
    confidence_PK = torch.softmax(scores_PK, -1) + SMALL
    agreed = agreed_PK.to(scores_PK.dtype) + SMALL
    weights_PK = (
        spec.position * position_K
        + spec.confidence * confidence_PK / confidence_PK.sum(-1, keepdim=True)
        + spec.consistency * agreed
    )
    return weights_PK / weights_PK.sum(-1, keepdim=True)


def ranking_loss(weights_PK: Tensor, candidate_PK: Tensor, negative_P: Tensor) -> Tensor:
    """Sum over positions of ``Σ_k w_k (-log σ(z_k) - log(1 - σ(z_n)))``.

    The authors' program has ``log σ(1 - z_n)`` in the second term; here it is binary cross-entropy, as in their paper.

    Args:
        weights_PK: see `candidate_weights`.
        candidate_PK: scores of the student for the teacher's candidates.
        negative_P: its scores for a random item.
    """
    loss_P = (weights_PK * F.softplus(-candidate_PK)).sum(-1) + F.softplus(negative_P)
    return loss_P.sum()


def list_divergence(teacher_PK: Tensor, student_PK: Tensor, temperature: float) -> Tensor:
    """Sum over positions of ``T² KL(softmax(teacher / T) || softmax(student / T))`` over the K listed items.

    The factor keeps gradients of one size whatever the temperature is (Hinton, Vinyals and Dean 2015, section 2.1).
    A constant added to all scores of a list changes nothing, so log-odds and logits of labels can be used alike.

    Args:
        teacher_PK: scores of the teacher.
        student_PK: logits of the student for the same items.
        temperature: T, over 0; higher ones tell more of the items that are not the best.
    """
    wanted_PK = F.log_softmax(teacher_PK / temperature, -1)
    found_PK = F.log_softmax(student_PK / temperature, -1)
    return temperature**2 * F.kl_div(found_PK, wanted_PK, reduction="sum", log_target=True)


class ListDistillation(nn.Module):
    """The losses of a student over a teacher's lists.

    Args:
        spec: its weights; `DistillationSpec.ranking` and `DistillationSpec.divergence` multiply the two losses.
    """

    def __init__(self, spec: DistillationSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, users_PD: Tensor, items_ND: Tensor, rows_PK: Tensor, scores_PK: Tensor) -> Tensor:
        """The summed loss; rows of the lists are -1 throughout where the teacher has none for a position."""
        known_P = rows_PK[:, 0] >= 0
        loss = users_PD.sum() * 0.0
        if not bool(known_P.any()):
            return loss
        users_PD, rows_PK, scores_PK = users_PD[known_P], rows_PK[known_P], scores_PK[known_P]
        logits_PN = users_PD @ items_ND.T
        if self.spec.ranking:
            loss = loss + self.spec.ranking * self._ranking(logits_PN, rows_PK, scores_PK)
        if self.spec.divergence:
            student_PK = logits_PN.gather(1, rows_PK)
            loss = loss + self.spec.divergence * list_divergence(scores_PK, student_PK, self.spec.temperature)
        return loss

    def _ranking(self, logits_PN: Tensor, rows_PK: Tensor, scores_PK: Tensor) -> Tensor:
        best_PK = logits_PN.detach().topk(rows_PK.shape[1], -1).indices
        agreed_PK = (rows_PK[:, :, None] == best_PK[:, None, :]).any(-1)
        weights_PK = candidate_weights(self.spec, scores_PK, agreed_PK)
        negatives_P = torch.randint(logits_PN.shape[1], (len(rows_PK), 1), device=rows_PK.device)
        return ranking_loss(weights_PK, logits_PN.gather(1, rows_PK), logits_PN.gather(1, negatives_P)[:, 0])


class TeacherVectors(nn.Module):
    """A parametrisation of an id table: its own rows plus a map of the teacher's item vectors, UNKNOWN's without.

    The table that a student shows and scores is one matrix throughout: leaving the parametrisation folds the sum into
    it, and the student costs what it would cost without a teacher.

    Args:
        vectors_NC: of the teacher.
        dim: width of the table.
        weight: of the mapped vectors.
    """

    vectors_NC: Tensor

    def __init__(self, vectors_NC: Tensor, dim: int, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("vectors_NC", F.normalize(vectors_NC, dim=-1) * vectors_NC.shape[1] ** 0.5, False)
        self.map = nn.Linear(vectors_NC.shape[1], dim, bias=False)
        nn.init.normal_(self.map.weight, std=1 / (vectors_NC.shape[1] * dim) ** 0.5)

    def forward(self, table_ND: Tensor) -> Tensor:
        """The table [N + 1, D] with the mapped vectors added to its first N rows."""
        return table_ND + F.pad(self.weight * self.map(self.vectors_NC), (0, 0, 0, 1))
