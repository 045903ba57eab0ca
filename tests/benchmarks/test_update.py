"""What the benchmark of updates withholds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.quality.update import without_newest
from testing.datasets import write_dataset
from training.data.dataset import read_dataset


def test_the_newest_interactions_go_and_with_them_items_that_nobody_had_chosen(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "ring", users=20)
    events = pl.read_csv(folder / "interactions.csv").with_columns(pl.col("timestamp") * 10 + 5)
    late = pl.DataFrame({"user_id": ["u3"], "item_id": ["late"], "timestamp": [10_000]})
    pl.concat([events, late]).write_csv(folder / "interactions.csv")
    with (folder / "items.jsonl").open("a") as file:
        file.write('{"item_id": "late", "title": "late"}\n{"item_id": "never", "title": "never"}\n')
    whole = read_dataset(folder)
    old = read_dataset(without_newest(whole, 0.1, tmp_path / "old"))
    assert old.n_interactions == round(0.9 * whole.n_interactions)
    assert "never" in old.item_ids and "late" not in old.item_ids
    newest = np.sort(whole.timestamps)[old.n_interactions - 1]
    assert old.timestamps.max() <= newest
    for user, name in enumerate(old.user_ids):
        before = [whole.item_ids[row] for row in whole.sequence(whole.user_of[name])]
        now = [old.item_ids[row] for row in old.sequence(user)]
        assert now == before[: len(now)]
