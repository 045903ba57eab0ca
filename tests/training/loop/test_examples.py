"""Windows and batches: every target once an epoch, no target in its own input, the same split over processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling.encoder.build import Model, build_model
from modeling.spec import BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from training.loop.examples import EpochWindows, LengthBatches, collate, prefixes_of, windows_of

ITEMS = 40


def _id_model(recent: int = 0) -> Model:
    return build_model(
        ModelSpec(
            history=HistorySpec(form="ids", limit=10, dropout=0.0),
            backbone=BackboneSpec(width=16, heads=2, dropout=0.0),
            projector=ProjectorSpec(kind="identity", residual=recent > 0, recent=max(1, recent)),
            items=ItemsSpec(tower="id", dim=16),
        ),
        catalog_size=ITEMS,
    )


def _sequences(seed: int = 0, users: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, ITEMS, rng.integers(1, 35)) for _ in range(users)]


@given(length=st.integers(0, 200), limit=st.integers(1, 30), seed=st.integers(0, 9))
def test_every_item_but_the_first_is_a_target_once(length: int, limit: int, seed: int) -> None:
    windows = windows_of(np.arange(length), limit, np.random.default_rng(seed))
    assert [row for window in windows for row in window.rows[1:]] == list(range(1, length))
    assert all(2 <= len(window.rows) <= limit + 1 for window in windows)


def test_cuts_move_between_epochs_and_repeat_with_the_seed() -> None:
    def cuts(seed: int, epoch: int) -> list[list[int]]:
        windows = EpochWindows(_sequences(), limit=10, seed=seed)
        windows.set_epoch(epoch)
        return [window.rows.tolist() for window in windows.windows]

    assert cuts(1, 0) == cuts(1, 0)
    assert cuts(1, 0) != cuts(1, 1)
    assert cuts(1, 0) != cuts(2, 0)


def test_what_was_seen_is_all_that_came_before_the_target_however_the_sequence_is_cut() -> None:
    sequence = np.array([4, 9, 4, 7, 1, 3, 9, 8, 2, 6, 0, 5])
    for windows in (windows_of(sequence, 3, np.random.default_rng(1)), prefixes_of(sequence, 3)):
        batch = collate(_id_model().encoder, windows, with_seen=True)
        assert batch.seen_S2 is not None and collate(_id_model().encoder, windows).seen_S2 is None
        found = {(int(place), int(row)) for place, row in batch.seen_S2.tolist()}
        expected = set()
        for place, target in enumerate(batch.targets_P.tolist()):
            at = place + 1  # windows of one user hold its targets in order
            assert sequence[at] == target
            expected |= {(place, int(row)) for row in sequence[:at] if row != target}
        assert found == expected


@pytest.mark.parametrize("epoch", [0, 5])
def test_global_batches_hold_every_window_once_and_are_a_fixed_number(epoch: int) -> None:
    windows = EpochWindows(_sequences(), limit=10, seed=0)
    batches = LengthBatches(windows, positions=64, seed=0)
    count = len(batches)
    batches.set_epoch(epoch)
    found = batches.global_batches()
    assert len(found) == count
    assert Counter(index for batch in found for index in batch) == Counter(range(len(windows)))


def test_two_processes_share_each_global_batch() -> None:
    windows = EpochWindows(_sequences(), limit=10, seed=0)
    whole = LengthBatches(windows, positions=64, seed=0).global_batches()
    parts = [list(LengthBatches(windows, positions=64, seed=0, rank=rank, world=2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert sorted(batch) == sorted(first + second)
        assert first
        assert second


def test_padding_is_a_few_percent() -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, ITEMS, min(50, 4 + int(rng.pareto(1.5) * 4))) for _ in range(2000)]
    windows = EpochWindows(sequences, limit=50, seed=0)
    real = padded = 0
    for batch in LengthBatches(windows, positions=1280, seed=0):
        lengths = [len(windows[index].rows) - 1 for index in batch]
        real += sum(lengths)
        padded += max(lengths) * len(lengths)
    assert real / padded > 0.87, real / padded


def test_changing_a_target_leaves_the_user_vector_bit_identical() -> None:
    model = _id_model()
    encoder = model.encoder.eval()
    vectors = []
    for last in (3, 17):
        windows = windows_of([5, 9, 2, last], 10, np.random.default_rng(0))
        batch = collate(encoder, windows)
        states = encoder.hidden(batch.prompts)[batch.users_P, batch.boundaries_P]
        vectors.append(encoder.project(states, batch.recent_PR).detach().numpy())
        assert batch.targets_P[-1] == last
    np.testing.assert_array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize("recent", [0, 1, 3])
@pytest.mark.parametrize("history", [[5], [5, 9, 2, 11]])
def test_boundary_states_of_a_sequence_are_those_of_its_prefixes(recent: int, history: list[int]) -> None:
    """The loss at every boundary trains exactly what serving computes for a history that ends there."""
    encoder = _id_model(recent).encoder.eval()
    batch = collate(encoder, windows_of([*history, 7], 10, np.random.default_rng(0)))
    states = encoder.hidden(batch.prompts)[batch.users_P, batch.boundaries_P]
    at_boundaries = encoder.project(states, batch.recent_PR).detach().numpy()
    prefixes = encoder.encode([encoder.prepare(history[: n + 1]) for n in range(len(history))])
    np.testing.assert_allclose(at_boundaries, prefixes, atol=1e-5)
