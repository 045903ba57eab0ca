"""A comparison as data: every figure that the pages show, and nothing that they do not."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from modeling.cores import affinity_cores
from training.comparison.measure import How, Run
from training.comparison.published import published_for
from training.data.dataset import Dataset
from training.data.splits import Split
from training.evaluation.segments import COLD, by_length, by_popularity, group_figures
from training.evaluation.significance import METRICS, PairedTest, corrected, paired_tests

SCHEMA = 1
LIMITS = (
    "Every figure is of one training with one seed; an interval is over users, not over trainings.",
    "Intervals are 95 % bootstrap intervals; those of differences are not corrected, the p-values of Holm are.",
    "A model that writes or ranks lists is asked for a sample of users where there are more, and a test is over the "
    "users that both models were asked about. Beyond its list of 20 a target has no rank, and it always removes seen "
    "items.",
    "Two stages: where the target is not among the candidates, its rank is that of the dense stage.",
    "Latency is of one request at a time in a process of its own, without HTTP; memory is what that process grew by.",
)


@dataclass(frozen=True)
class Section:
    """Measurements of one protocol."""

    split: Split
    runs: Sequence[Run]
    baselines: Sequence[Run]


def report_of(dataset: Dataset, sections: Sequence[Section], how: How) -> dict[str, Any]:
    """The report as plain data.

    Args:
        dataset: what was asked.
        sections: one a split.
        how: it was measured.
    """
    facts = {"name": dataset.name, **dataset.statistics(), "sha256": dataset.sha256, "ties": dataset.ties}
    return {
        "schema": SCHEMA,
        "data": facts,
        "part": how.part,
        "seed": how.seed,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"processor": _processor(), "cores": affinity_cores(), "system": platform.system()},
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "protocols": [_section(section, dataset, how) for section in sections],
        "limits": list(LIMITS),
    }


def _section(section: Section, dataset: Dataset, how: How) -> dict[str, Any]:
    split = section.split
    targets = split.targets(how.part)
    groups = {
        "by_popularity": by_popularity(split.popularity()[targets.rows_T]),
        "by_history": by_length(np.asarray(targets.positions_T, np.int64)),
    }
    rows = []
    for run in [*section.baselines, *section.runs]:
        found = {
            name: group_figures(run.ranks_T, _asked(of_all, run), seed=how.seed) for name, of_all in groups.items()
        }
        rows.append({"name": run.name, **run.facts, **found, "cold": found["by_popularity"].get(COLD)})
    return {
        "split": split.name,
        "questions": len(targets),
        "runs": rows,
        "tests": [test._asdict() for test in tests_of(section, seed=how.seed)],
        "published": [each._asdict() for each in published_for(dataset, split.name) if how.part == "test"],
    }


def _asked(groups: dict[str, Any], run: Run) -> dict[str, Any]:
    """The groups among the questions of a run; those that it was not asked are left out."""
    found = {name: group[run.questions_T] for name, group in groups.items()}
    return {name: group for name, group in found.items() if group.any()}


def tests_of(section: Section, *, seed: int) -> list[PairedTest]:
    """All pairs of artifacts, and each with the baseline of the best NDCG@10: one family, corrected by Holm."""
    pairs = list(itertools.combinations(section.runs, 2))
    if section.baselines:
        best = max(section.baselines, key=lambda run: float(run.facts["ndcg@10"]["value"]))
        pairs = [*((run, best) for run in section.runs), *pairs]
    found: list[PairedTest] = []
    for a, b in pairs:
        _, of_a, of_b = np.intersect1d(a.questions_T, b.questions_T, assume_unique=True, return_indices=True)
        if len(of_a):
            found += paired_tests(a.name, a.ranks_T[of_a], b.name, b.ranks_T[of_b], metrics=METRICS, seed=seed)
    return corrected(found)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()
