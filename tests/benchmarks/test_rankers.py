"""The benchmark of rankers keeps every row that has ended, and nothing else is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.quality import rankers
from testing.datasets import write_dataset
from testing.models import backbone_folder

__all__ = ["backbone_folder"]  # a fixture


@pytest.fixture
def words(backbone_folder: Callable[[str], Path], tmp_path: Path) -> list[str]:
    """A command with a tiny model and rated items."""
    folder = write_dataset(tmp_path / "rated", users=20, items=20)
    events = pl.read_csv(folder / "interactions.csv")
    rating = pl.when(pl.col("item_id").str.ends_with("1")).then(2.0).otherwise(4.5)
    events.with_columns(rating.alias("rating")).write_csv(folder / "interactions.csv")
    return [
        "tallrec", "--data", str(folder), "--backbone", str(backbone_folder("qwen3")), "--users", "20", "--layers", "1",
        "--set", 'method.labels=["red","blue"]', "--set", "history.title_tokens=4", "--set", "adapter.kind=lora",
        "--state", str(tmp_path / "state"), "--examples", "8",
    ]  # fmt: skip


def test_a_command_goes_on_after_the_rows_that_have_ended(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[tuple[int, int]] = []
    train = rankers.fitted

    def counted(recipe: Any, split: Any, given: Any, shots: int, work: Path) -> Any:
        trained.append((shots, given.seed))
        if trained == [(0, 0), (0, 1), (4, 0)]:
            raise KeyboardInterrupt
        return train(recipe, split, given, shots, work)

    def rows() -> Any:
        rankers.main([*words, "--shots", "0", "4", "--seeds", "0", "1"])
        return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]

    monkeypatch.setattr(rankers, "fitted", counted)
    with pytest.raises(KeyboardInterrupt):
        rows()
    assert len(list((tmp_path / "state").iterdir())) == 2, "two rows had ended"
    found = rows()
    assert trained == [(0, 0), (0, 1), (4, 0), (4, 0), (4, 1)], "those are not asked for again"
    assert [(row["shots"], row["seed"]) for row in found] == [(0, 0), (0, 1), (4, 0), (4, 1)]
    assert all(0 <= row["auc_low"] <= row["auc"] <= row["auc_high"] <= 1 for row in found)
    assert rows() == found and len(trained) == 5
    words += ["--set", "history.instruction=Will the user like the target"]
    rows()
    assert len(trained) == 9, "another prompt has rows of its own"
