"""The tree of items that are chosen together: it finds planted communities, and holds every item once."""

from __future__ import annotations

import numpy as np
import pytest

from training.item_ids.clusters import choices, cluster_tree, spectral_labels

GROUPS, EACH = 6, 50


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    """Users who stay in one of six groups of fifty items nine times out of ten."""
    rng = np.random.default_rng(0)
    found = []
    for user in range(900):
        own = EACH * (user % GROUPS) + rng.integers(EACH, size=12)
        found.append(np.where(rng.random(12) < 0.9, own, rng.integers(GROUPS * EACH, size=12)))
    return found


def test_planted_communities_are_found(sequences: list[np.ndarray]) -> None:
    labels_M = spectral_labels(choices(sequences, GROUPS * EACH), GROUPS)
    per_group = [set(labels_M[group * EACH : (group + 1) * EACH].tolist()) for group in range(GROUPS)]
    assert all(len(labels) == 1 for labels in per_group) and len(set.union(*per_group)) == GROUPS


def test_whole_and_iterative_decompositions_agree(sequences: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_UN = choices(sequences, GROUPS * EACH)
    iterative = spectral_labels(chosen_UN, GROUPS)
    monkeypatch.setattr("training.item_ids.clusters.DENSE", 10**6)
    whole = spectral_labels(chosen_UN, GROUPS)
    assert all(len(np.unique(whole[iterative == label])) == 1 for label in np.unique(iterative))


def test_every_item_is_in_one_leaf_and_leaves_are_small(sequences: list[np.ndarray]) -> None:
    items = GROUPS * EACH + 7  # seven that nobody chose
    chosen_UN = choices(sequences, items)
    leaves = cluster_tree(chosen_UN, clusters=4, leaf=20, levels=9)
    assert sorted(row for leaf in leaves for row in leaf.rows_M.tolist()) == list(range(items))
    assert max(len(leaf.rows_M) for leaf in leaves) <= 20
    paths = [leaf.path for leaf in leaves]
    assert not any(one != other and one == other[: len(one)] for one in paths for other in paths), "a node is no leaf"
    again = cluster_tree(chosen_UN, clusters=4, leaf=20, levels=9)
    assert all((one.rows_M == other.rows_M).all() for one, other in zip(leaves, again, strict=True))


def test_what_cannot_be_divided_is_a_leaf() -> None:
    lonely_UN = choices([np.array([number]) for number in range(30)], 30)
    (leaf,) = cluster_tree(lonely_UN, clusters=4, leaf=5, levels=3)
    assert leaf.path == () and len(leaf.rows_M) == 30
    assert max(len(leaf.path) for leaf in cluster_tree(choices([np.arange(30)], 30), clusters=2, leaf=1, levels=2)) <= 2
