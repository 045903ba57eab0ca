"""Floors on data small enough to rank by hand, their protocol, and the published floors where the data is there."""

from __future__ import annotations

import numpy as np
import pytest

from training.data import read_dataset
from training.data.splits import leave_one_out
from training.evaluation.baselines import (
    FLOORS,
    hybrid_knn,
    item_knn,
    markov,
    measure_baseline,
    popularity,
    title_tfidf,
)
from training.evaluation.metrics import question_values


def split_of(folder, sequences, titles=None):
    import json

    items = sorted({item for sequence in sequences for item in sequence})
    titles = titles or {}
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"item_id": i, "title": titles.get(i, i)}) + "\n" for i in items)
    )
    rows = [f"u{u},{item},{n}" for u, sequence in enumerate(sequences) for n, item in enumerate(sequence)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return leave_one_out(read_dataset(folder))


def scores_of(scorer, split, history):
    rows = np.array([split.dataset.row_of[item] for item in history], dtype=np.int32)
    return dict(zip(split.dataset.item_ids, np.asarray(scorer([rows]))[0].tolist(), strict=True))


# The last two of each sequence are targets, so training sees a-b, a-b-c, a-c and d.
SEQUENCES = ["abxy", "abcxz", "acyz", "dxz"]


def test_popularity_counts_training_interactions_only(tmp_path):
    split = split_of(tmp_path, SEQUENCES)
    assert scores_of(popularity(split), split, "d") == {"a": 3, "b": 2, "c": 2, "d": 1, "x": 0, "y": 0, "z": 0}


def test_markov_counts_what_followed_the_last_item_and_falls_back_on_popularity(tmp_path):
    split = split_of(tmp_path, SEQUENCES)
    after_a = scores_of(markov(split), split, "da")
    assert int(after_a["b"]) == 2 and int(after_a["c"]) == 1 and int(after_a["d"]) == 0
    after_c = scores_of(markov(split), split, "c")  # nothing followed c in training, though targets did
    assert all(score < 1 for score in after_c.values())
    assert sorted(after_c, key=after_c.get, reverse=True)[0] == "a"
    after_b = scores_of(markov(split), split, "b")
    assert int(after_b["a"]) == 0, "the next user's first item does not follow the last item of this one"


def test_item_knn_is_the_cosine_of_users_with_long_ones_counting_less(tmp_path):
    split = split_of(tmp_path, SEQUENCES)
    # Rows of length 1: u0 (a b)/√2, u1 (a b c)/√3, u2 (a c)/√2, u3 (d).
    a, b = np.array([2**-0.5, 3**-0.5, 2**-0.5]), np.array([2**-0.5, 3**-0.5, 0])
    c = np.array([0, 3**-0.5, 2**-0.5])

    def cosine(one, other):
        return one @ other / np.sqrt(one @ one * (other @ other))

    found = scores_of(item_knn(split), split, "ab")
    assert found["c"] == pytest.approx(cosine(b, c) + 0.8 * cosine(a, c))
    assert found["a"] == pytest.approx(cosine(b, a)) and found["d"] == 0


def test_title_tfidf_is_the_cosine_of_weighted_words_with_recent_titles_counting_more(tmp_path):
    titles = {"a": "Red Lantern", "b": "red, RED!", "c": "Blue Lantern", "d": "Green", "x": "Blue", "y": "Y", "z": "—"}
    split = split_of(tmp_path, SEQUENCES, titles)
    n = 7
    red, blue, lantern = np.log(1 + n / 2), np.log(1 + n / 2), np.log(1 + n / 2)
    a = np.array([red, 0, lantern])
    b = np.array([(1 + np.log(2)) * red, 0, 0])
    c = np.array([0, blue, lantern])

    def cosine(one, other):
        return one @ other / np.sqrt(one @ one * (other @ other))

    found = scores_of(title_tfidf(split), split, "ab")
    assert found["a"] == pytest.approx(cosine(b, a) + 0.8)
    assert found["c"] == pytest.approx(0.8 * cosine(a, c))
    assert found["d"] == 0 == found["z"], "a title without a word is like no other"


def test_both_together_find_by_titles_what_nobody_took_and_by_histories_what_is_called_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    early, late = "abcdefgh", "ijklmnop"  # two groups that are never mixed; nobody takes y and z in training
    sequences = ["".join(rng.permutation(list(group))[:6]) + "yz" for group in (early, late) for _ in range(30)]
    titles = {item: f"Title {item}" for item in early + late} | {"y": "Title a", "z": "Else"}
    split = split_of(tmp_path, sequences, titles)
    by_titles = scores_of(title_tfidf(split), split, "a")
    found = scores_of(hybrid_knn(split), split, "a")
    assert found["y"] == pytest.approx(by_titles["y"]) and found["y"] > max(found[item] for item in late)
    assert found["z"] == 0
    assert min(found[item] - by_titles[item] for item in early) > max(found[item] - by_titles[item] for item in late)


def test_only_the_last_ten_items_count(tmp_path):
    split = split_of(tmp_path, ["abcdefghijklmnop", "ayz"])
    assert scores_of(title_tfidf(split), split, "abcdefghijkl")["a"] == 0
    assert scores_of(title_tfidf(split), split, "abcdefghij")["a"] == pytest.approx(0.8**9)


@pytest.mark.parametrize("name", FLOORS)
def test_every_floor_ranks_every_question_removes_seen_items_and_repeats_with_the_seed(tmp_path, name):
    rng = np.random.default_rng(0)
    sequences = [[f"i{n}" for n in rng.permutation(30)[: rng.integers(3, 15)]] for _ in range(60)]
    split = split_of(tmp_path, sequences)
    floor = measure_baseline(name, split, "test", seed=5)
    assert floor.metrics.questions == 60 == len(floor.ranks_T)
    lengths = split.test.positions_T
    assert ((floor.ranks_T >= 1) & (floor.ranks_T <= 30 - lengths)).all(), "seen items would push ranks beyond this"
    assert np.array_equal(floor.ranks_T, measure_baseline(name, split, "test", seed=5).ranks_T)
    assert measure_baseline(name, split, "validation").metrics.questions == 60
    assert {"coverage@20", "novelty@20", "popularity_lift@20"} == set(floor.metrics.beyond)


def test_an_unknown_floor_is_refused_with_the_known_ones(tmp_path):
    split = split_of(tmp_path, SEQUENCES)
    with pytest.raises(ValueError, match="floor 'knn' not found; known floors: popularity, markov-1, item-knn, title-"):
        measure_baseline("knn", split)


# HR@5, NDCG@5, HR@10, NDCG@10, HR@20, NDCG@20 as printed beside the data; theirs break ties by place, ours by chance.
PRINTED = {
    "popularity": (0.0863, 0.0547, 0.1461, 0.0738, 0.2222, 0.0931),
    "markov-1": (0.1193, 0.0814, 0.1738, 0.0990, 0.2488, 0.1179),
    "item-knn": (0.1283, 0.0828, 0.1939, 0.1038, 0.2913, 0.1283),
    "title-tfidf": (0.0277, 0.0195, 0.0427, 0.0243, 0.0741, 0.0321),
}


@pytest.fixture(scope="module")
def movietweetings(real_data):
    return leave_one_out(read_dataset(real_data("movietweetings-100k")))


@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_floors_of_movietweetings_come_out(movietweetings, name):
    values = question_values(measure_baseline(name, movietweetings).ranks_T)
    found = [values[f"{kind}@{cut}"].mean() for cut in (5, 10, 20) for kind in ("recall", "ndcg")]
    # Ties at the cuts: 2 of 4,333 users for the counts, 15 for titles, many of which are alike; none for cosines.
    close = {"item-knn": 0.00005, "title-tfidf": 0.0035}.get(name, 0.0005)
    assert found == pytest.approx(PRINTED[name], abs=close)
