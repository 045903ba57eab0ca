"""Withheld items: in the catalog and among the targets, and in nothing that is trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from training.cli import app
from training.data import DataError, Dataset, read_dataset
from training.data.splits import leave_one_out
from training.data.withhold import withhold


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Sequences of 1 to 9 items, so that some users are trained on whole."""
    folder, rng = tmp_path / "data", np.random.default_rng(3)
    folder.mkdir()
    items = [{"item_id": f"i{n}", "title": f"Title {n}", "categories": ["a", "b"][: n % 3]} for n in range(40)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    lines = ["user_id,item_id,timestamp,rating"]
    for user in range(300):
        rows = rng.choice(40, 1 + user % 9, replace=False)
        lines += [f"u{user},i{row},{step},{1 + row % 5}" for step, row in enumerate(rows)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    return read_dataset(folder)


def test_withheld_items_are_asked_for_and_never_trained_on(dataset: Dataset, tmp_path: Path) -> None:
    withheld_N, _ = withhold(dataset, 0.25, seed=1)
    hidden = {dataset.item_ids[row] for row in np.flatnonzero(withheld_N)}
    assert len(hidden) == 10
    arguments = ["--data", dataset_folder(tmp_path), "--out", str(tmp_path / "out"), "--share", "0.25", "--seed", "1"]
    done = CliRunner().invoke(app, ["withhold", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.strip().splitlines()[-1])
    made = read_dataset(tmp_path / "out")
    split = leave_one_out(made)
    assert sorted(made.item_ids) == sorted(dataset.item_ids) and made.n_items == 40
    trained = {made.item_ids[row] for row in np.flatnonzero(split.popularity() > 0)}
    assert not trained & hidden
    asked = [made.item_ids[row] for row in split.validation.rows_T]
    cold = sum(item not in trained for item in asked)
    assert cold == said["validation_targets_never_trained_on"] >= sum(item in hidden for item in asked) > 10
    assert said["withheld_items"] == 10
    assert said["interactions_dropped"] == dataset.n_interactions - made.n_interactions
    before, after = {}, {}
    for each, found in ((dataset, before), (made, after)):
        for user in range(each.n_users):
            found[each.user_ids[user]] = [each.item_ids[row] for row in each.sequence(user)]
    for user, items in after.items():
        asks = len(items) >= 3
        dropped = [item for item in before[user] if item not in items]
        assert set(dropped) <= hidden and items == [item for item in before[user] if item in set(items)]
        assert not asks or items[-2:] == before[user][-2:], "the same questions as before"
    rated = dict(zip(made.rows.tolist(), made.columns["rating"].to_list(), strict=True))
    assert all(rating == 1 + int(made.item_ids[row][1:]) % 5 for row, rating in rated.items())


def dataset_folder(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.mark.parametrize("share", [0, 1, 0.001])
def test_a_share_of_nothing_or_all_is_refused(dataset: Dataset, share: float) -> None:
    with pytest.raises(DataError, match=r"which withholds \d+ of 40 items; it is over 0 and under 1"):
        withhold(dataset, share, seed=0)


def test_a_folder_that_holds_something_is_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    folder = dataset_folder(tmp_path)
    done = CliRunner().invoke(app, ["withhold", "--data", folder, "--out", folder])
    assert done.exit_code != 0 and "is what is read; name another folder" in done.output
