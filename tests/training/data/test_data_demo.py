"""The demo data set: the same everywhere, clean, short-titled, and with the signal its text promises."""

from __future__ import annotations

import re

import numpy as np
import pytest

from training.data import read_dataset
from training.data.fetched.demo import SEED, USERS, write_demo
from training.data.fetched.demo_words import GENRES, MOODS
from training.data.splits import leave_one_out
from training.evaluation.baselines import FLOORS, measure_baseline


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return read_dataset(folder, strict=True)


def test_the_seed_decides_every_byte(demo, tmp_path):
    # If the generator was changed on purpose: raise GENERATOR in training/data/fetched/demo.py and write the new hash.
    assert (SEED, USERS) == (20, 4000)
    assert demo.sha256 == "24d8facea500854fd9cf7bca4c11a8c1817d0152ddef5ae0d7d4dcb631f9bb2c"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_demo(tmp_path / name, seed=seed, users=20)
    files = ("items.jsonl", "interactions.csv.gz")
    a, b, c = ([(tmp_path / name / file).read_bytes() for file in files] for name in "abc")
    assert a == b and a[0] != c[0] and a[1] != c[1]


def test_it_is_clean_and_small_with_short_titles_that_differ(demo):
    assert demo.report.findings == () and demo.report.notes == ()
    assert demo.n_items == 1200 and demo.n_users == 4000
    assert set(demo.lengths_U.tolist()) == set(range(6, 26))
    assert len(set(demo.titles)) == demo.n_items
    assert max(len(title.split()) for title in demo.titles) <= 3
    ids = np.array([int(item_id[1:]) for item_id in demo.items.sort("title")["item_id"]])
    assert abs(np.corrcoef(ids, np.arange(len(ids)))[0, 1]) < 0.1, "ids must not say what stands near what"


def test_titles_tell_genre_and_mood_and_not_the_publisher(demo):
    words = [set(words.split()) for words in (*GENRES.values(), *MOODS.values())]
    assert sum(map(len, words)) == len(set.union(*words)), "a word of two lists would tell nothing"
    genre_of = {word: genre for genre, words in GENRES.items() for word in words.split()}
    for title, categories in zip(demo.titles, demo.categories, strict=True):
        (genre,) = {genre_of[word] for word in title.split() if word in genre_of}
        assert categories == (genre,)
    publishers = {word for brand in demo.items["brand"].unique() for word in re.findall(r"\w+", brand)}
    title_words = {word for title in demo.titles for word in title.split()}
    assert not (publishers - {"House", "Lane", "Row", "Street", "Press"}) & title_words


def test_genre_follows_the_story_before_last_and_mood_the_last_one(demo):
    genre_of = {word: at for at, words in enumerate(GENRES.values()) for word in words.split()}
    mood_of = {word: at for at, words in enumerate(MOODS.values()) for word in words.split()}
    genre = np.array([next(genre_of[w] for w in title.split() if w in genre_of) for title in demo.titles])
    mood = np.array([next(mood_of[w] for w in title.split() if w in mood_of) for title in demo.titles])
    series = np.array([title[-1].isdigit() for title in demo.titles])
    kept_genre, kept_mood, same_genre = [], [], []
    for user in range(demo.n_users):
        rows = demo.sequence(user)
        free = ~series[rows[1:-1]]  # a story of a series may be followed by its next volume
        told_apart = free & (genre[rows[1:-1]] != genre[rows[:-2]])
        kept_genre += (genre[rows[2:]] == genre[rows[:-2]])[told_apart].tolist()
        same_genre += (genre[rows[2:]] == genre[rows[1:-1]])[told_apart].tolist()
        kept_mood += (mood[rows[2:]] == (mood[rows[1:-1]] + 1) % len(MOODS))[free].tolist()
    assert np.mean(kept_genre) > 0.75 and np.mean(kept_mood) > 0.75
    assert np.mean(same_genre) < 0.15


def test_every_series_is_read_in_order(demo):
    volume_of = {row: int(title[-1]) for row, title in enumerate(demo.titles) if title[-1].isdigit()}
    next_of = {row: demo.titles.index(title[:-1] + str(int(title[-1]) + 1)) for row, title in enumerate(demo.titles)
               if title[-1] in "123"}  # fmt: skip
    followed = [
        next_of[a] == b
        for user in range(demo.n_users)
        for a, b in zip(demo.sequence(user).tolist(), demo.sequence(user)[1:].tolist(), strict=False)
        if volume_of.get(a, 9) < 4
    ]
    assert 0.3 < np.mean(followed) < 0.7


def test_the_floors_leave_room_above_them(demo):
    split = leave_one_out(demo)
    found = {name: measure_baseline(name, split).metrics["recall@10"] for name in FLOORS}
    assert found["popularity"] < 0.05 and max(found.values()) < 0.25
    assert min(found["markov-1"], found["item-knn"], found["title-tfidf"]) > 0.08, "there is signal to find"
