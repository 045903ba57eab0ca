"""The batching core on a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batcher import WINDOW_BATCHES, Batcher, Entry, EntryTooLong, Limits, QueueFull, Waiter
from testing.simulation import Costs, simulate

NEVER = 1e9


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def batcher(tokens: int = 100, requests: int = 4, queued: int = 10_000, padding: float = 0.5) -> Batcher[str, int]:
    return Batcher(Limits(tokens, requests, queued, padding), Clock())


def admit(
    queue: Batcher[str, int], key: str, length: int, deadline: float = NEVER
) -> tuple[Entry[str, int], Waiter[int]]:
    waiter = Waiter(0, deadline)
    return queue.admit(key, length, key, waiter), waiter


def keys(queue: Batcher[str, int]) -> list[str]:
    batch = queue.next_batch()
    return [] if batch is None else [entry.work for entry in batch.entries]


def test_takes_what_is_there_without_waiting_for_more() -> None:
    queue = batcher()
    admit(queue, "a", 10)
    assert keys(queue) == ["a"]
    assert keys(queue) == []


def test_what_is_there_is_shared_among_those_who_ask() -> None:
    queue = batcher(tokens=1000, requests=8)
    for name in "abcde":
        admit(queue, name, 10)
    batches = [queue.next_batch(takers) for takers in (2, 2, 1)]
    assert [[entry.work for entry in batch.entries] for batch in batches if batch] == [["a", "b", "c"], ["d"], ["e"]]


def test_the_budget_counts_padding() -> None:
    queue = batcher(tokens=100, requests=10, padding=0.9)
    for name, length in (("a", 40), ("b", 20), ("c", 20)):
        admit(queue, name, length)
    # 40 + 20 + 20 real positions would fit into 100, but three rows of 40 do not.
    assert keys(queue) == ["a", "b"]
    assert keys(queue) == ["c"]


@pytest.mark.parametrize(("packed", "computed"), [(False, 80), (True, 60)])
def test_a_batch_says_which_positions_are_computed(packed: bool, computed: int) -> None:
    queue = Batcher[str, int](Limits(100, 4, 10_000, 0.5, packed=packed), Clock())
    for name, length in (("a", 40), ("b", 20)):
        admit(queue, name, length)
    batch = queue.next_batch()
    assert batch is not None and (batch.tokens, batch.computed_tokens) == (60, computed)
    assert batch.padding == pytest.approx(1 - 60 / computed)


def test_near_equal_lengths_travel_together_and_the_oldest_leads() -> None:
    queue = batcher(tokens=1000, requests=3, padding=0.9)
    for name, length in (("old", 50), ("far", 5), ("near", 48), ("far2", 99), ("same", 50)):
        admit(queue, name, length)
    assert keys(queue) == ["old", "same", "near"]
    assert keys(queue) == ["far", "far2"]


def test_a_batch_is_not_padded_beyond_its_share() -> None:
    queue = batcher(tokens=10_000, requests=10, padding=0.3)
    admit(queue, "short", 10)
    admit(queue, "long", 100)
    assert keys(queue) == ["short"]
    assert keys(queue) == ["long"]


def test_a_full_queue_refuses_and_an_entry_beyond_any_batch_is_refused_for_good() -> None:
    queue = batcher(tokens=100, queued=120)
    admit(queue, "a", 100)
    with pytest.raises(QueueFull):
        admit(queue, "b", 21)
    admit(queue, "c", 20)
    with pytest.raises(EntryTooLong):
        admit(queue, "d", 101)


def test_an_entry_that_everyone_left_gives_its_place_back_at_once() -> None:
    queue = batcher(queued=100)
    entry, waiter = admit(queue, "a", 100)
    queue.leave(entry, waiter)
    assert (queue.depth, queue.queued_tokens, queue.dropped) == (0, 0, 1)
    admit(queue, "b", 100)
    assert keys(queue) == ["b"]


def test_identical_entries_are_one_until_the_batch_is_done() -> None:
    queue = batcher()
    first, leaver = admit(queue, "same", 10)
    second, _ = admit(queue, "same", 10)
    assert first is second and queue.queued_tokens == 10
    queue.leave(first, leaver)
    batch = queue.next_batch()
    assert batch is not None and batch.entries == (first,)
    joined, _ = admit(queue, "same", 10)
    assert joined is first and queue.depth == 0, "a running entry can still be joined"
    queue.done(batch)
    fresh, _ = admit(queue, "same", 10)
    assert fresh is not first and queue.depth == 1


def test_an_expired_entry_never_reaches_the_device_and_a_later_twin_revives_it() -> None:
    queue = batcher()
    clock = queue._clock
    assert isinstance(clock, Clock)
    admit(queue, "late", 10, deadline=5)
    admit(queue, "kept", 10, deadline=5)
    clock.now = 6
    admit(queue, "kept", 10, deadline=9)
    assert keys(queue) == ["kept"]
    assert queue.dropped == 1


@st.composite
def _steps(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    step = st.one_of(
        st.tuples(st.just("admit"), st.integers(1, 64), st.integers(0, 12)),
        st.tuples(st.just("leave"), st.integers(0, 200), st.just(0)),
        st.tuples(st.just("batch"), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 10), st.just(0)),
    )
    return draw(st.lists(step, max_size=120))


@settings(max_examples=300, deadline=None)
@given(
    steps=_steps(),
    tokens=st.integers(64, 300),
    requests=st.integers(1, 6),
    queued=st.integers(300, 1500),
    padding=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_whatever_happens_the_promises_hold(
    steps: list[tuple[str, int, int]], tokens: int, requests: int, queued: int, padding: float
) -> None:
    clock = Clock()
    limits = Limits(tokens, requests, queued, padding)
    queue: Batcher[int, int] = Batcher(limits, clock)
    admitted: list[tuple[Entry[int, int], Waiter[int]]] = []
    computed: set[int] = set()
    for number, (kind, size, patience) in enumerate(steps):
        if kind == "admit":
            waiter = Waiter(number, clock.now + patience)
            try:
                admitted.append((queue.admit(number, size, number, waiter), waiter))
            except QueueFull:
                assert queue.queued_tokens + size > queued
        elif kind == "leave" and admitted:
            queue.leave(*admitted[size % len(admitted)])
        elif kind == "wait":
            clock.now += size
        elif kind == "batch":
            waiting = [entry for entry, _ in admitted if entry in queue._queue and entry.wanted(clock.now)]
            batch = queue.next_batch()
            if batch is None:
                assert not waiting
                continue
            assert batch.entries[0] is waiting[0], "the oldest wanted entry is in the next batch"
            assert batch.computed_tokens <= tokens and len(batch.entries) <= requests
            assert batch.padding <= padding + 1e-9
            for entry in batch.entries:
                assert any(not waiter.gone and waiter.deadline > clock.now for waiter in entry.waiters)
                assert entry.work not in computed
                computed.add(entry.work)
            queue.done(batch)
        assert queue.queued_tokens == sum(entry.length for entry in queue._queue) <= queued
    clock.now += 0.5
    left = sum(entry.wanted(clock.now) for entry in queue._queue)
    batches = 0
    while (batch := queue.next_batch()) is not None:
        batches += 1
        queue.done(batch)
    assert batches <= left, "every batch takes at least one: nobody starves"
    assert queue.idle and queue.queued_tokens == 0


def test_short_newcomers_cannot_starve_a_long_entry() -> None:
    queue = batcher(tokens=64, requests=4)
    admit(queue, "long", 64)
    for number in range(10):
        admit(queue, f"s{number}", 4)
    assert keys(queue) == ["long"]


def test_a_long_queue_is_looked_at_through_a_window_only() -> None:
    queue = batcher(tokens=10_000, requests=2, queued=10_000_000, padding=0.0)
    admit(queue, "first", 7)
    for number in range(WINDOW_BATCHES * 2 + 5):
        admit(queue, f"other{number}", 9)
    admit(queue, "twin length", 7)
    # The equal length lies beyond the window: what is far back in the queue does not cost the front time.
    assert keys(queue) == ["first"]


def test_entries_of_different_groups_are_never_computed_together() -> None:
    batcher: Batcher[str, int] = Batcher(Limits(100, 8, 1000), lambda: 0.0)
    for number, group in enumerate(["few beams", "many beams", "few beams", "many beams"]):
        batcher.admit(number, 3, group, Waiter(number, 1.0), group)
    for group in ("few beams", "many beams"):
        batch = batcher.next_batch()
        assert batch is not None and [entry.work for entry in batch.entries] == [group, group]


def test_a_queue_can_be_bounded_in_entries_too() -> None:
    batcher: Batcher[str, int] = Batcher(Limits(100, 8, 1000, max_queued_requests=2), lambda: 0.0)
    for number in range(2):
        batcher.admit(number, 1, "", Waiter(number, 1.0))
    with pytest.raises(QueueFull, match="2 of 2 requests"):
        batcher.admit(2, 1, "", Waiter(2, 1.0))
    assert batcher.admit(1, 1, "", Waiter(3, 1.0)).key == 1, "a twin takes no place"


def test_the_simulation_is_the_queue_of_a_single_server() -> None:
    """Against Lindley's recursion, one request a batch; and batches make a backlog cheaper."""
    arrivals = [(0.0, 10), (0.5, 10), (0.6, 10), (9.0, 10), (9.1, 10)]
    one = Limits(10, 1, 10_000, 0.5)
    free, expected = 0.0, []
    for due, _ in arrivals:
        free = max(free, due) + 1.0
        expected.append(free - due)
    second = Costs(lambda positions: 1.0, lambda positions: 1.0)
    assert simulate(arrivals, one, second) == pytest.approx(expected)
    together = simulate(arrivals, Limits(100, 8, 10_000, 0.5), second)
    assert together == pytest.approx([1.0, 1.5, 1.4, 1.0, 1.9])
    # two lanes: the second request does not wait, the third waits for the first
    assert simulate(arrivals, one, second, lanes=2) == pytest.approx([1.0, 1.0, 1.4, 1.0, 1.0])


@given(
    due=st.lists(st.floats(0, 20), min_size=1, max_size=40),
    lengths=st.lists(st.integers(1, 60), min_size=40, max_size=40),
    padding=st.floats(0, 0.9),
)
@settings(deadline=None)
def test_nobody_waits_longer_than_all_the_work_before_and_beside_it(
    due: list[float], lengths: list[int], padding: float
) -> None:
    """On the virtual clock with a cost that batches share: no entry starves, whatever the lengths."""
    arrivals = sorted(zip(due, lengths, strict=False))

    def cost(positions: int) -> float:
        return 0.1 + 0.01 * positions

    latencies = simulate(arrivals, Limits(64, 4, 10_000, padding), Costs(cost, cost))
    for number, ((_, length), latency) in enumerate(zip(arrivals, latencies, strict=True)):
        longest_batch = cost(64)
        # every batch before its own holds the oldest entry of its time, which came no later than this one
        assert cost(length) <= latency + 1e-9
        assert latency <= longest_batch * (number + 2) + 1e-9


def test_packed_entries_go_by_age_and_cost_their_sum() -> None:
    queue: Batcher[str, int] = Batcher(Limits(100, 10, 10_000, 0.1, packed=True), Clock())
    for name, length in (("long", 60), ("short", 5), ("middle", 30), ("late", 40)):
        admit(queue, name, length)
    assert keys(queue) == ["long", "short", "middle"], "60 + 5 + 30 fit, although three rows of 60 would not"
    assert keys(queue) == ["late"]


def test_a_batch_with_enough_positions_takes_no_more_but_a_long_entry_goes_alone() -> None:
    queue: Batcher[str, int] = Batcher(Limits(100, 10, 10_000, 0.5, packed=True, enough=40), Clock())
    for name, length in (("a", 20), ("b", 20), ("c", 20), ("huge", 90), ("d", 10)):
        admit(queue, name, length)
    assert [keys(queue) for _ in range(3)] == [["a", "b"], ["c", "d"], ["huge"]]
