"""Evaluation refuses to ask an artifact what it was trained on."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from modeling.methods.dense import ArtifactError
from testing.datasets import SMALL, write_dataset
from training.compare import compare_artifacts, evaluate_artifact, write_top
from training.data.dataset import read_dataset, shuffle_ties
from training.recipes import get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)


def test_other_ties_a_refit_and_mixed_splits_are_refused(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "ring")
    events = pl.read_csv(folder / "interactions.csv").with_columns(pl.col("timestamp") * 1000 + 7)  # times, not places
    events.write_csv(folder / "interactions.csv")
    dataset = read_dataset(folder)
    recipe = get_recipe("sasrec", [*SMALL, "optimizer.epochs=1"])
    for name, options in (("plain", {}), ("timed", {"split": "global-time"}), ("refit", {"refit": True})):
        run(recipe, dataset, RunOptions(out=tmp_path / name, **options), QUIET)  # type: ignore[arg-type]
    common = {"seed": 0, "ledger": False, "console": QUIET}
    with pytest.raises(ArtifactError, match=r"trained with ties 'file'.*shuffled with seed 0"):
        evaluate_artifact(tmp_path / "plain", shuffle_ties(dataset, 0), "test", **common)
    with pytest.raises(ArtifactError, match=r"validation was trained on"):
        evaluate_artifact(tmp_path / "refit", dataset, "validation", **common)
    with pytest.raises(ArtifactError, match=r"different splits \(global-time .*, leave-one-out\)"):
        compare_artifacts([tmp_path / "plain", tmp_path / "timed"], dataset, "test", **common)
    row, answers = evaluate_artifact(tmp_path / "timed", dataset, "test", **common)
    write_top(tmp_path / "top.jsonl", answers, dataset)
    assert len((tmp_path / "top.jsonl").read_text().splitlines()) == row["questions"] == len(answers.targets)
