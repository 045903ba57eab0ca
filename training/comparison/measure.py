"""Measurements of one artifact for the report, which are kept, so that a comparison goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from modeling.artifact.folders import files_in
from modeling.artifact.manifest import MANIFEST
from training.compare import Opened, open_artifact
from training.comparison.entrants import Entrant
from training.comparison.footprint import footprint_of
from training.data.dataset import Dataset
from training.data.splits import Part, Split, Targets
from training.evaluation.baselines import FLOORS, measure_baseline
from training.evaluation.full_ranking import Evaluation, encode_users, ranks_of
from training.evaluation.ledger import append_entry
from training.evaluation.metrics import rank_report

SCHEMA = 1
TIMED = 100
"""Users whose requests are timed."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """One model's answers to questions of a split.

    Attributes:
        name: in the report.
        split: full name of it.
        questions_T: places of the questions among those of the split's part.
        ranks_T: of their targets, seen items removed.
        kept_ranks_T: seen items kept; None where the model always removes them.
        facts: everything else that the report says of it, as plain data.
    """

    name: str
    split: str
    questions_T: Rows
    ranks_T: Rows
    kept_ranks_T: Rows | None
    facts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        kept = None if self.kept_ranks_T is None else self.kept_ranks_T.tolist()
        arrays = {"questions": self.questions_T.tolist(), "ranks": self.ranks_T.tolist(), "kept_ranks": kept}
        return {"name": self.name, "split": self.split, **arrays, "facts": self.facts}

    @classmethod
    def of_dict(cls, data: dict[str, Any]) -> Run:
        """Inverse of `to_dict`."""
        kept = None if data["kept_ranks"] is None else np.asarray(data["kept_ranks"], np.int64)
        questions, ranks = (np.asarray(data[name], np.int64) for name in ("questions", "ranks"))
        return cls(data["name"], data["split"], questions, ranks, kept, data["facts"])


@dataclass(frozen=True)
class How:
    """Settings of the measurements in a comparison.

    Attributes:
        part: ``test`` or ``validation``.
        seed: of ties, intervals and samples.
        users: maximum number of targets for an artifact that generates or ranks lists.
        ledger: whether test results are added to the ledger.
        ledger_file: of the ledger; None: the default file.
        ancestors: see `training.compare.open_artifact`.
    """

    part: Part
    seed: int
    users: int
    ledger: bool
    ledger_file: Path | None = None
    ancestors: frozenset[str] = frozenset()


def measured(entrant: Entrant, dataset: Dataset, how: How, store: Path, console: Console) -> Run:
    """The run of an artifact, from ``store`` where the same was measured before.

    Raises `ArtifactError` as `training.compare.open_artifact`.
    """
    return kept_run(
        store, entrant.name, [entrant.folder], dataset, how, lambda: _measure(entrant, dataset, how, console)
    )


def kept_run(
    store: Path | None,
    name: str,
    folders: Sequence[Path],
    dataset: Dataset,
    how: How,
    measure: Callable[[], Run],
    more: Sequence[Any] = (),
) -> Run:
    """The result of ``measure``, read from ``store`` if the same measurement was made before.

    Args:
        store: folder of measurements; None: none is kept.
        name: of the run.
        folders: of the artifacts that are measured.
        dataset, how: data set, and settings of the measurement.
        measure: called where there is no such measurement.
        more: further inputs that affect the figures.
    """
    if store is None:
        return measure()
    manifests = [hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() for folder in folders]
    decides = [SCHEMA, *manifests, dataset.sha256, dataset.ties, how.part, how.seed, how.users, name, *more]
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    path = store / f"{name}.{key}.json"
    if path.exists():
        return Run.of_dict(json.loads(path.read_text(encoding="utf-8")))
    found = measure()
    store.mkdir(parents=True, exist_ok=True)
    work = path.with_suffix(".writing")
    work.write_text(json.dumps(found.to_dict()), encoding="utf-8")
    work.replace(path)
    return found


def _measure(entrant: Entrant, dataset: Dataset, how: How, console: Console) -> Run:
    opened = open_artifact(entrant.folder, dataset, how.part, how.ancestors)
    questions_T = questions_of(len(opened.targets), how.users if opened.on_list else None, how.seed)
    targets = some_of(opened.targets, questions_T)
    kept = {} if opened.on_list else {"kept": True}
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"{entrant.name}: {len(targets)} users", total=len(targets))
        result = opened.answer(
            targets, opened.split.popularity(), seed=how.seed, progress=lambda n: bar.advance(task, n), **kept
        )
    with console.status(f"{entrant.name}: latency and memory"):
        asked = [rows for history in targets.histories() if (rows := opened.rows(history.tolist()))]
        serving = footprint_of(entrant.folder, asked[:TIMED])
    manifest = opened.manifest
    facts = {
        "recipe": manifest.recipe,
        "version": manifest.version,
        "kind": "writes or ranks lists" if opened.on_list else "vectors",
        "asked": asked_text(len(targets), len(opened.targets), how.seed),
        "fitted_on": manifest.fitted_on,
        **result.metrics.to_dict(),
        "seen_kept": _kept(result, how.seed),
        "served_index": result.index_metrics,
        "history_shuffled": None if opened.on_list else _shuffled(opened, targets, how),
        "serving": serving,
        "disk_bytes": sum(path.stat().st_size for path in files_in(entrant.folder).values()),
        "training": {
            name: manifest.training.get(name) for name in ("seconds", "epochs", "precision", "threads", "seed")
        },
    }
    if how.ledger and how.part == "test":
        trained_with = int(manifest.training.get("seed", 0))
        enter(entrant.name, facts, manifest.recipe_data, trained_with, opened.split, dataset, how)
    return Run(entrant.name, opened.split.name, questions_T, result.ranks_T, result.kept_ranks_T, facts)


def baseline_runs(split: Split, how: How, console: Console) -> list[Run]:
    """The baselines on all questions."""
    found = []
    for name in FLOORS:
        with console.status(f"baseline {name}"):
            floor = measure_baseline(name, split, how.part, seed=how.seed, kept=True)
        kept = None if floor.kept_ranks_T is None else rank_report(floor.kept_ranks_T, seed=how.seed).to_dict()
        facts = {"kind": "baseline", "asked": "all", "fitted_on": floor.fitted_on, **floor.metrics.to_dict()}
        everyone = np.arange(len(floor.ranks_T))
        found.append(
            Run(
                f"{name} (baseline)", split.name, everyone, floor.ranks_T, floor.kept_ranks_T,
                {**facts, "seen_kept": kept},
            )
        )  # fmt: skip
    return found


def questions_of(count: int, most: int | None, seed: int) -> Rows:
    """Places of the questions that are asked, at most ``most`` (None: all); the same ones for the same ``seed``."""
    if most is None or count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng([seed, 17]).choice(count, most, replace=False))


def some_of(targets: Targets, questions_T: Rows) -> Targets:
    """The targets in these places."""
    return Targets(targets.dataset, targets.users_T[questions_T], targets.positions_T[questions_T])


def asked_text(asked: int, of: int, seed: int) -> str:
    """Readable text on the number of evaluated users."""
    return "all" if asked == of else f"{asked:,} of {of:,} users, drawn with seed {seed}"


def _kept(result: Evaluation, seed: int) -> dict[str, Any] | None:
    return None if result.kept_ranks_T is None else rank_report(result.kept_ranks_T, seed=seed).to_dict()


def _shuffled(opened: Opened, targets: Targets, how: How) -> dict[str, Any]:
    """Figures where every history is read in a random order: what the order of a history is worth."""
    chosen = some_of(targets, questions_of(len(targets), how.users, how.seed))
    rng = np.random.default_rng([how.seed, 19])
    histories = [history.astype(np.int64) for history in chosen.histories()]
    users_TD = encode_users(opened.model.encoder, [rng.permutation(history) for history in histories])
    ranks_T = ranks_of(users_TD, opened.model.all_scores, chosen.rows_T, histories, seed=how.seed)
    asked = asked_text(len(chosen), len(targets), how.seed)
    return {"asked": asked, **rank_report(ranks_T, cuts=(10,), seed=how.seed).to_dict()}


def enter(
    name: str, facts: dict[str, Any], config: dict[str, Any], seed: int, split: Split, dataset: Dataset, how: How
) -> None:
    """Append the test figures of a run to the ledger; ``config`` and ``seed`` are those of its training."""
    append_entry(
        config=config,
        seed=seed,
        data=dataset.name,
        data_sha256=dataset.sha256,
        split=split.name,
        part=how.part,
        result={"method": name, **facts},
        path=how.ledger_file,
    )
