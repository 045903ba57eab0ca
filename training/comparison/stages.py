"""Two artifacts as one run of a comparison: a dense one retrieves candidates, a ranker orders them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from modeling.artifact.folders import files_in
from modeling.artifact.manifest import MANIFEST, ArtifactError
from modeling.methods.base_ranking import Rerank, ranker_of
from training.compare import Opened, open_artifact
from training.comparison.entrants import Entrant
from training.comparison.footprint import SecondStage, footprint_of
from training.comparison.measure import (
    TIMED,
    How,
    Run,
    asked_text,
    enter,
    kept_run,
    questions_of,
    some_of,
)
from training.data.dataset import Dataset
from training.data.report import DataError
from training.evaluation.two_stages import TwoStages, evaluate_two_stages
from training.provenance import require_same_split
from training.recipe import RecipeError

CANDIDATES = 50
"""Items of the first stage where the command line names no number, as in the API."""


@dataclass(frozen=True)
class Stages:
    """Two stages that take part.

    Attributes:
        name: in the report.
        retriever: the entrant that finds candidates, which the two are compared with.
        ranker: folder of the artifact that orders them; it may not be there yet where it is trained first.
        candidates: how many are retrieved.
    """

    name: str
    retriever: Entrant
    ranker: Path
    candidates: int


def stages_of(pairs: Sequence[str], candidates: int | None, entrants: Sequence[Entrant]) -> list[Stages]:
    """The stages as the command line names them, ``DENSE:RANKER``: names of entrants, the ranker also a folder.

    Raises:
        RecipeError: a pair of another form, an unknown name, a pair twice, or candidates without a pair.
    """
    if candidates is not None and not pairs:
        raise RecipeError("--candidates is for --rerank DENSE:RANKER, which is not given")
    by_name = {entrant.name: entrant for entrant in entrants}
    found: dict[str, Stages] = {}
    for pair in pairs:
        dense, sign, word = pair.partition(":")
        if not (dense and sign and word):
            raise RecipeError(f"--rerank {pair!r} is not of the form DENSE:RANKER, e.g. sasrec:artifacts/tallrec")
        if dense not in by_name:
            raise RecipeError(f"--rerank {pair!r}: {dense!r} does not take part; those that do: {', '.join(by_name)}")
        if word in by_name:
            folder, ranker = by_name[word].folder, word
        elif (Path(word) / MANIFEST).is_file():
            folder, ranker = Path(word), Path(word).resolve().name
        else:
            raise RecipeError(f"--rerank {pair!r}: {word!r} neither takes part nor is an artifact's folder")
        name = f"{dense} + {ranker}"
        if name in found or name in by_name:
            raise RecipeError(f"{name!r} takes part twice")
        found[name] = Stages(name, by_name[dense], folder, candidates or CANDIDATES)
    return list(found.values())


def measured_stages(stages: Stages, dataset: Dataset, how: How, store: Path | None, console: Console) -> Run:
    """The run of two stages, from ``store`` where the same was measured before; None: it is measured.

    Raises:
        ArtifactError: as `training.compare.open_artifact`, or the first artifact is not dense.
        DataError: the second one does not score given candidates.
    """
    folders = [stages.retriever.folder, stages.ranker]

    def measure() -> Run:
        return _measure(stages, dataset, how, console)

    return kept_run(store, stages.name, folders, dataset, how, measure, [stages.candidates])


def _measure(stages: Stages, dataset: Dataset, how: How, console: Console) -> Run:
    dense, ranking = (open_artifact(folder, dataset, how.part) for folder in (stages.retriever.folder, stages.ranker))
    both = _composed(stages, dense, ranking)
    questions_T = questions_of(len(dense.targets), how.users, how.seed)
    targets, popularity_N = some_of(dense.targets, questions_T), dense.split.popularity()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"{stages.name}: {len(targets)} users", total=len(targets))
        alone = dense.answer(targets, popularity_N, seed=how.seed)
        result, ranks = evaluate_two_stages(
            both, alone, popularity_N, seed=how.seed, progress=lambda n: bar.advance(task, n)
        )
    with console.status(f"{stages.name}: latency and memory"):
        asked = [history.tolist() for history in targets.histories()][:TIMED]
        second = SecondStage(stages.ranker, stages.candidates)
        serving = footprint_of(stages.retriever.folder, asked, second)
    folders = (stages.retriever.folder, stages.ranker)
    facts = {
        **_named(dense, ranking),
        "kind": "two stages",
        "asked": asked_text(len(targets), len(dense.targets), how.seed),
        **result.metrics.to_dict(),
        "seen_kept": None,
        "served_index": result.index_metrics,
        "history_shuffled": None,
        "stages": _side_by_side(ranks, stages, how.seed),
        "serving": serving,
        "disk_bytes": sum(path.stat().st_size for folder in folders for path in files_in(folder).values()),
        "training": {},
    }
    if how.ledger and how.part == "test":
        recipes = {"retriever": dense.manifest.recipe_data, "ranker": ranking.manifest.recipe_data}
        enter(stages.name, facts, {**recipes, "candidates": stages.candidates}, how.seed, dense.split, dataset, how)
    return Run(stages.name, dense.split.name, questions_T, result.ranks_T, None, facts)


def _composed(stages: Stages, dense: Opened, ranking: Opened) -> Rerank:
    if dense.index is None:
        raise ArtifactError(
            f"artifact {stages.retriever.name} (recipe {dense.manifest.recipe}) cannot retrieve for --rerank: it "
            "returns lists; a dense artifact can"
        )
    require_same_split(f"artifact {stages.ranker.name}", ranking.manifest, dense.manifest.split)
    ranker = ranker_of(ranking.model)
    if ranker is None:
        raise DataError(
            f"artifact {stages.ranker.name} (recipe {ranking.manifest.recipe}) does not score candidates that it is "
            "given; rankers (tallrec, llamarec, llara), counted and dense artifacts do"
        )
    return Rerank(dense.model, ranker, stages.candidates, dense.index)


def _named(dense: Opened, ranking: Opened) -> dict[str, str]:
    """Recipe, version, and what was fitted on, of both."""
    manifests = (dense.manifest, ranking.manifest)
    return {
        name: " + ".join(dict.fromkeys(str(getattr(each, name)) for each in manifests))
        for name in ("recipe", "version", "fitted_on")
    }


def _side_by_side(ranks: TwoStages, stages: Stages, seed: int) -> dict[str, Any]:
    """Both stages and the dense one alone, for the same users."""
    figures = ranks.figures(seed=seed)
    names = ("difference", "difference_low", "difference_high")
    return {
        "retriever": stages.retriever.name,
        "ranker": stages.ranker.resolve().name,
        "candidates": stages.candidates,
        "inside": figures["inside"],
        **{
            name: {"value": round(each.value, 6), "low": round(each.low, 6), "high": round(each.high, 6)}
            for name, each in ranks.intervals(seed=seed).items()
        },
        "difference": dict(zip(("value", "low", "high"), (round(figures[name], 6) for name in names), strict=True)),
    }
