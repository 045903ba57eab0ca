"""Splits: what is trained on, what is asked, and that no answer can be seen."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from training.data import DataError, read_dataset
from training.data.splits import global_time, leave_one_out


def dataset_of(folder, sequences, times=None):
    """A data set from `{user: "abc"}`; times are 0, 10, 20, … per user unless given."""
    items = sorted({item for items in sequences.values() for item in items})
    (folder / "items.jsonl").write_text("".join(json.dumps({"item_id": i, "title": i}) + "\n" for i in items))
    lines = ["user_id,item_id,timestamp"]
    for user, items in sequences.items():
        stamps = times[user] if times else range(5, 5 + 10 * len(items), 10)
        lines += [f"{user},{item},{stamp}" for item, stamp in zip(items, stamps, strict=True)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    return read_dataset(folder)


def names(dataset, rows):
    return "".join(dataset.item_ids[row] for row in rows)


def questions(targets):
    dataset = targets.dataset
    return {
        dataset.user_ids[user]: (names(dataset, history), dataset.item_ids[row])
        for user, history, row in zip(targets.users_T, targets.histories(), targets.rows_T, strict=True)
    }


def test_leave_one_out_asks_for_the_last_two_and_trains_on_the_rest(tmp_path):
    split = leave_one_out(dataset_of(tmp_path, {"u": "abcde", "v": "xy", "w": "bca"}))
    assert questions(split.validation) == {"u": ("abc", "d"), "w": ("b", "c")}
    assert questions(split.test) == {"u": ("abcd", "e"), "w": ("bc", "a")}
    dataset = split.dataset
    assert [names(dataset, split.train_row(u)) for u in range(3)] == ["abc", "xy", "b"]
    assert [names(dataset, split.train_row(u, "train+validation")) for u in range(3)] == ["abcd", "xy", "bc"]


def test_ragged_training_rows_and_popularity_hold_no_target(tmp_path):
    split = leave_one_out(dataset_of(tmp_path, {"u": "abcde", "v": "xy", "w": "bca"}))
    offsets, rows = split.sequences()
    assert [names(split.dataset, rows[a:b]) for a, b in pairwise(offsets)] == ["abc", "xy", "b"]
    counts = dict(zip(split.dataset.item_ids, split.popularity().tolist(), strict=True))
    assert counts == {"a": 1, "b": 2, "c": 1, "d": 0, "e": 0, "x": 1, "y": 1}
    assert split.popularity("train+validation").sum() == 4 + 2 + 2


def test_leave_one_out_needs_someone_with_three_interactions(tmp_path):
    with pytest.raises(DataError, match="no user has 3 interactions"):
        leave_one_out(dataset_of(tmp_path, {"u": "ab", "v": "a"}))


def test_global_time_asks_nothing_that_training_or_a_history_has_seen(tmp_path):
    rng = np.random.default_rng(0)
    sequences, times = {}, {}
    for u in range(40):
        length = int(rng.integers(1, 12))
        sequences[f"u{u}"] = [f"i{n}" for n in rng.permutation(30)[:length]]
        times[f"u{u}"] = np.sort(rng.integers(0, 1000, size=length)).tolist()
    split = global_time(dataset_of(tmp_path, sequences, times), validation=0.2, test=0.2)
    dataset = split.dataset
    stamps = dataset.timestamps

    def time_of(targets):
        return stamps[dataset.offsets_U1[targets.users_T] + targets.positions_T]

    trained = [stamps[dataset.offsets_U1[u] : dataset.offsets_U1[u] + n] for u, n in enumerate(split.train_lengths_U)]
    last_trained = max(part.max() for part in trained if len(part))
    assert last_trained < time_of(split.validation).min() <= time_of(split.validation).max() < time_of(split.test).min()
    last_read = max(
        stamps[dataset.offsets_U1[u] : dataset.offsets_U1[u] + n].max()
        for u, n in zip(split.test.users_T, split.test.positions_T, strict=True)
    )
    assert last_read < time_of(split.test).min()
    assert all(len(history) for history in (*split.validation.histories(), *split.test.histories()))
    assert abs((stamps < time_of(split.validation).min()).mean() - 0.6) < 0.03


def test_global_time_refuses_positions_and_empty_parts(tmp_path):
    positions = dataset_of(tmp_path, {"u": "abcd", "v": "abcd"}, {"u": range(4), "v": range(4)})
    with pytest.raises(DataError, match="positions instead of times"):
        global_time(positions)
    same_moment = dataset_of(tmp_path, {"u": "abcd"}, {"u": [7, 7, 7, 7]})
    with pytest.raises(DataError, match="leaves a part without targets"):
        global_time(same_moment)
    with pytest.raises(DataError, match=r"validation is 0\.6 and test 0\.5"):
        global_time(same_moment, validation=0.6, test=0.5)


def test_unknown_parts_are_refused(tmp_path):
    split = leave_one_out(dataset_of(tmp_path, {"u": "abcd"}))
    with pytest.raises(ValueError, match="part is 'tset'; a split has: validation, test"):
        split.targets("tset")
    with pytest.raises(ValueError, match="fitted_on is 'all'"):
        split.popularity("all")
