"""Paired tests of runs on the same questions, and Holm's correction where several are read together.

NDCG: the paired t-test, which agrees with a randomisation test at the numbers of questions used here (Smucker et al.,
CIKM 2007). Recall, which is 0 or 1 for a question: McNemar's exact test (McNemar 1947), a binomial test over the
questions that one run answers and the other does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from training.evaluation.metrics import Floats, Ints, paired_bootstrap, question_values

LEVEL = 0.05
METRICS = ("ndcg@10", "recall@10")


class PairedTest(NamedTuple):
    """Run ``a`` minus run ``b`` in one metric, over the questions that both were asked.

    ``low`` and ``high`` are the 95 % bootstrap interval of this one difference; ``p_holm`` is corrected for all
    comparisons that were made together.
    """

    a: str
    b: str
    metric: str
    questions: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values that bound the chance of any false rejection among all of them (Holm 1979, step-down)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests with Holm's p-values, all of them being one family."""
    return [test._replace(p_holm=p) for test, p in zip(tests, holm([test.p for test in tests]), strict=True)]


def paired_tests(
    a: str,
    ranks_a_T: Ints,
    b: str,
    ranks_b_T: Ints,
    *,
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
) -> list[PairedTest]:
    """One test a metric of two runs that answered the same T questions; p-values are not corrected yet.

    Args:
        a, b: names of the runs.
        ranks_a_T, ranks_b_T: rank of each target, from 1.
        metrics: ``recall@K``, ``ndcg@K`` or ``mrr``.
        seed: of the resamples behind the intervals.
    """
    intervals = paired_bootstrap(ranks_a_T, ranks_b_T, seed=seed)
    of_a, of_b = question_values(ranks_a_T), question_values(ranks_b_T)
    found = []
    for metric in metrics:
        difference_T, interval = of_a[metric] - of_b[metric], intervals[metric]
        p = _mcnemar(difference_T) if metric.startswith("recall") else _paired_t(difference_T)
        found.append(
            PairedTest(a, b, metric, len(ranks_a_T), interval.difference, interval.low, interval.high, p)
        )  # fmt: skip
    return found


def _paired_t(difference_T: Floats) -> float:
    if len(difference_T) < 2 or not np.ptp(difference_T):
        return 1.0
    return float(stats.ttest_1samp(difference_T, 0.0).pvalue)


def _mcnemar(difference_T: Floats) -> float:
    only_a, only_b = int((difference_T > 0).sum()), int((difference_T < 0).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
