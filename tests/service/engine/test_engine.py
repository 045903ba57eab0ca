"""The engine: batching, isolation of failures, deadlines, cancellation, death of a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from service.engine.batcher import Limits
from service.engine.dense import Engine
from service.engine.work import Found, Hits, Work
from service.errors import DeadlineExceeded, ModelError, NotReady, Overloaded, TooLarge
from service.observability.metrics import Metrics
from testing.fake_parts import TableEncoder

NO_ROWS = np.empty(0, np.int64)
TABLE = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


def search(user_BD: np.ndarray, works: Sequence[Work]) -> list[Hits]:
    if any(work.k == 13 for work in works):
        raise RuntimeError("this search fails")
    return [(np.argsort(-TABLE @ user)[: work.k], user[:1]) for user, work in zip(user_BD, works, strict=True)]


class Bench:
    def __init__(self, queue_seconds: float = 0.0, rate: float = 0.0, **limits: int) -> None:
        self.encoder = TableEncoder(TABLE, limit=50, reads_text=False)
        given = {"max_batch_tokens": 256, "max_batch_requests": 8, "max_queued_tokens": 1024, **limits}
        self.engine = Engine(
            self.encoder.encode, search, Limits(**given), Metrics(),
            stall_seconds=0.2, queue_seconds=queue_seconds, rate=rate,
        )  # fmt: skip

    async def __aenter__(self) -> Bench:
        self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.encoder.gate.set()
        await self.engine.close(1)

    def ask(self, rows: list[int], k: int = 3, patience_s: float = 5.0) -> asyncio.Task[Found]:
        work = Work(self.encoder.prepare(rows), k, NO_ROWS)
        return asyncio.create_task(self.engine.run(work, (tuple(rows), k), time.monotonic() + patience_s))

    async def hold(self) -> asyncio.Task[Found]:
        """Close the device with one request on it, so that everything else queues up."""
        before = self.encoder.entered
        self.encoder.gate.clear()
        first = self.ask([49])
        while self.encoder.entered == before:
            await asyncio.sleep(0.001)
        return first


async def test_what_queues_during_a_forward_pass_shares_the_next_one() -> None:
    async with Bench() as bench:
        first = await bench.hold()
        waiting = [bench.ask([row, row + 1]) for row in range(6)]
        await asyncio.sleep(0)
        bench.encoder.gate.set()
        await asyncio.gather(first, *waiting)
        assert bench.encoder.batches == [[1], [2] * 6]


async def test_a_row_in_a_batch_gets_the_answer_it_gets_alone() -> None:
    async with Bench() as bench:
        alone = [await bench.ask([row, 3, row + 2]) for row in range(10)]
        together = await asyncio.gather(*(bench.ask([row, 3, row + 2]) for row in range(10)))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.rows_K, other.rows_K)
            np.testing.assert_array_equal(one.vector_D, other.vector_D)


async def test_identical_requests_in_flight_are_computed_once() -> None:
    async with Bench() as bench:
        first = await bench.hold()
        twins = [bench.ask([1, 2]) for _ in range(5)]
        on_device = bench.ask([49])
        await asyncio.sleep(0)
        bench.encoder.gate.set()
        answers = await asyncio.gather(*twins)
        assert (await on_device) is (await first), "joined the one that was on the device already"
        assert bench.encoder.batches == [[1], [2]]
        assert all(answer is answers[0] for answer in answers)


async def test_one_bad_request_fails_alone_and_the_loop_goes_on() -> None:
    async with Bench() as bench:
        bench.encoder.poison = 13
        first = await bench.hold()
        good, bad = [bench.ask([row, 1]) for row in range(4)], bench.ask([13, 1])
        await asyncio.sleep(0)
        bench.encoder.gate.set()
        await asyncio.gather(first, *good)
        with pytest.raises(ModelError):
            await bad
        bench.encoder.poison = None
        assert len((await bench.ask([13, 1])).rows_K) == 3


async def test_a_failing_search_fails_alone_too() -> None:
    async with Bench() as bench:
        first = await bench.hold()
        good, bad = [bench.ask([row, 1]) for row in range(4)], bench.ask([5, 1], k=13)
        await asyncio.sleep(0)
        bench.encoder.gate.set()
        await asyncio.gather(first, *good)
        with pytest.raises(ModelError):
            await bad


async def test_a_vector_that_is_not_finite_is_nobodys_answer() -> None:
    async with Bench() as bench:
        bench.encoder.table_ND = TABLE.copy()
        bench.encoder.table_ND[7] = np.nan
        good, bad = bench.ask([1]), bench.ask([7])
        await good
        with pytest.raises(ModelError):
            await bad


async def test_past_its_deadline_a_request_is_answered_and_never_computed() -> None:
    async with Bench() as bench:
        first = await bench.hold()
        late = bench.ask([1, 2, 3], patience_s=0.05)
        with pytest.raises(DeadlineExceeded):
            await late
        assert bench.engine.load() == (0, 0)
        bench.encoder.gate.set()
        await first
        assert [3] not in bench.encoder.batches


async def test_a_cancelled_request_never_reaches_the_device() -> None:
    async with Bench() as bench:
        first = await bench.hold()
        gone, kept = bench.ask([1, 2, 3]), bench.ask([1, 2])
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        bench.encoder.gate.set()
        await asyncio.gather(first, kept)
        assert bench.encoder.batches == [[1], [2]]


async def test_a_full_queue_says_when_to_come_back() -> None:
    async with Bench(max_batch_tokens=8, max_queued_tokens=8) as bench:
        await bench.ask([1])
        first = await bench.hold()
        waiting = bench.ask([1] * 8)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await bench.ask([1])
        assert refused.value.retry_after is not None and refused.value.retry_after >= 1
        with pytest.raises(TooLarge, match="ANYO_MAX_BATCH_TOKENS"):
            await bench.ask([1] * 9)
        bench.encoder.gate.set()
        await asyncio.gather(first, waiting)


async def test_what_would_wait_too_long_is_refused_before_the_queue_is_full() -> None:
    async with Bench(queue_seconds=0.2, max_batch_requests=2, max_batch_tokens=8) as bench:
        bench.encoder.delay_s = 0.05  # two requests of two positions: 80 a second
        burst = [bench.ask([row, row + 1]) for row in range(40)]
        accepted = await asyncio.gather(*burst)
        assert len(accepted) == 40, "as long as nothing is known of the rate, only the positions count"
        first = await bench.hold()
        waiting = [bench.ask([row, row + 1]) for row in range(30)]
        await asyncio.sleep(0.02)
        bench.encoder.gate.set()
        done = await asyncio.gather(first, *waiting, return_exceptions=True)
        refused = [each for each in done if isinstance(each, Overloaded)]
        assert 10 < len(refused) < 25 and "wait take about" in refused[0].message
        assert refused[0].retry_after is not None
        assert len((await bench.ask([1])).rows_K) == 3, "and then it goes on at once"


async def test_a_flood_right_after_the_start_is_refused_at_the_rate_of_the_warm_up() -> None:
    async with Bench(queue_seconds=0.5, rate=100.0, max_batch_tokens=8) as bench:
        first = await bench.hold()
        flood = [bench.ask([row, row + 1]) for row in range(48)]
        await asyncio.sleep(0.02)
        bench.encoder.gate.set()
        done = await asyncio.gather(first, *flood, return_exceptions=True)
        # 100 positions a second for half a second: 25 requests of two positions wait, and the next would be behind 50.
        assert [isinstance(each, Overloaded) for each in done[1:]] == [False] * 26 + [True] * 22


async def test_a_quiet_hour_of_small_batches_refuses_nobody() -> None:
    async with Bench(queue_seconds=0.001, max_batch_requests=8, max_batch_tokens=16) as bench:
        for row in range(5):
            await bench.ask([row])
        first = await bench.hold()
        waiting = [bench.ask([row, row + 1]) for row in range(20)]
        await asyncio.sleep(0.02)
        bench.encoder.gate.set()
        await asyncio.gather(first, *waiting)


async def test_a_dead_thread_fails_its_waiters_and_says_so() -> None:
    async with Bench() as bench:
        bench.encoder.fatal = 13
        doomed, queued = bench.ask([13]), bench.ask([1, 2, 3, 4, 5])
        for task in (doomed, queued):
            with pytest.raises(NotReady, match="device thread died"):
                await task
        assert "device thread died" in (bench.engine.trouble() or "")
        with pytest.raises(NotReady):
            await bench.ask([1])


async def test_a_stalled_forward_pass_is_trouble_until_it_ends() -> None:
    async with Bench() as bench:
        first = await bench.hold()
        await asyncio.sleep(0.3)
        assert "forward pass" in (bench.engine.trouble() or "")
        bench.encoder.gate.set()
        await first
        assert bench.engine.trouble() is None


async def test_a_known_vector_goes_past_a_busy_device() -> None:
    async with Bench() as bench:
        known = await bench.ask([1, 2])
        first = await bench.hold()
        work = Work(None, 3, NO_ROWS, vector_D=known.vector_D)
        again = await bench.engine.run(work, "unused", time.monotonic() + 5)
        np.testing.assert_array_equal(again.rows_K, known.rows_K)
        assert "forward" not in again.seconds and not first.done()
        bench.encoder.gate.set()
        await first


async def test_closing_answers_what_is_in_flight_and_fails_the_rest_in_time() -> None:
    async with Bench() as bench:
        quick = bench.ask([1])
        await asyncio.sleep(0)
        await bench.engine.close(1)
        assert len((await quick).rows_K) == 3
    async with Bench() as bench:
        stuck = await bench.hold()
        closing = asyncio.create_task(bench.engine.close(0.1))
        with pytest.raises(NotReady, match="shutting down"):
            await stuck  # while the device is held: only below is it let go
        bench.encoder.gate.set()
        await closing


async def test_an_idle_engine_costs_nothing() -> None:
    async with Bench() as bench:
        await bench.ask([1])
        before = time.process_time()
        await asyncio.sleep(0.5)
        assert time.process_time() - before < 0.05


async def test_lanes_compute_beside_each_other_and_know_when_they_are_alone() -> None:
    """Each of two passes waits for the other to have begun; a third request has the device to itself afterwards."""
    both, alone = threading.Barrier(2), list[bool]()
    encoder = TableEncoder(TABLE, limit=50, reads_text=False)
    together = True

    def encode(prompts: Sequence[Any]) -> np.ndarray:
        if together:
            both.wait(timeout=5)
        return encoder.encode(prompts)

    limits = Limits(max_batch_tokens=256, max_batch_requests=1, max_queued_tokens=1024)
    engine = Engine(encode, search, limits, Metrics(), lanes=2, before_pass=alone.append)
    engine.start()

    def ask(rows: list[int]) -> asyncio.Task[Found]:
        work = Work(encoder.prepare(rows), 3, NO_ROWS)
        return asyncio.create_task(engine.run(work, tuple(rows), time.monotonic() + 5))

    try:
        found = await asyncio.gather(ask([1, 2]), ask([3, 4]))
        assert found[0].rows_K.tolist() != found[1].rows_K.tolist()
        assert sorted(alone) in ([False, False], [False, True]), "the second to begin is not alone"
        together = False
        await ask([5, 6])
        assert alone[2:] == [True]
        assert engine.running_seconds() == 0.0 and engine.load() == (0, 0)
    finally:
        await engine.close(1)


async def test_what_comes_at_once_is_shared_among_idle_lanes() -> None:
    both, batches = threading.Barrier(2), list[int]()
    encoder = TableEncoder(TABLE, limit=50, reads_text=False)

    def encode(prompts: Sequence[Any]) -> np.ndarray:
        batches.append(len(prompts))
        both.wait(timeout=5)
        return encoder.encode(prompts)

    engine = Engine(encode, search, Limits(256, 8, 1024), Metrics(), lanes=2)
    engine.start()
    await asyncio.sleep(0.05)  # both lanes wait
    works = [Work(encoder.prepare([row, row + 1]), 3, NO_ROWS) for row in range(6)]
    try:
        await asyncio.gather(*(engine.run(work, row, time.monotonic() + 5) for row, work in enumerate(works)))
        assert sorted(batches) == [3, 3]
    finally:
        await engine.close(1)


async def test_one_lane_does_all_while_passes_are_brief_and_only_then() -> None:
    """Passes of no time teach that; a pass that then takes long keeps nobody waiting, not even who came with it."""
    lanes, encoder = list[int](), TableEncoder(TABLE, limit=50, reads_text=False)
    stuck = threading.Event()

    def encode(prompts: Sequence[Any]) -> np.ndarray:
        lanes.append(threading.get_ident())
        if prompts[0].values_T.tolist() == [49]:
            stuck.wait(5)
        return encoder.encode(prompts)

    limits = Limits(max_batch_tokens=256, max_batch_requests=1, max_queued_tokens=1024)
    engine = Engine(encode, search, limits, Metrics(), lanes=2)
    engine.start()

    def ask(row: int) -> asyncio.Task[Found]:
        work = Work(encoder.prepare([row]), 3, NO_ROWS)
        return asyncio.create_task(engine.run(work, row, time.monotonic() + 5))

    try:
        for row in range(40):
            await ask(row)
        lanes.clear()
        await asyncio.gather(*map(ask, range(12)))
        assert len(lanes) == 12 and len(set(lanes)) == 1
        lanes.clear()
        first, *others = map(ask, [49, *range(12)])
        await asyncio.gather(*others)
        assert len(set(lanes)) == 2 and not first.done()
        stuck.set()
        await first
    finally:
        stuck.set()
        await engine.close(1)


async def test_a_stalled_pass_is_seen_beside_a_lane_that_goes_on() -> None:
    encoder = TableEncoder(TABLE, limit=50, reads_text=False)
    stuck, went_on = threading.Event(), 0

    def encode(prompts: Sequence[Any]) -> np.ndarray:
        nonlocal went_on
        if prompts[0].values_T.tolist() == [49]:
            stuck.wait(5)
        went_on += 1
        return encoder.encode(prompts)

    limits = Limits(max_batch_tokens=256, max_batch_requests=1, max_queued_tokens=1024)
    engine = Engine(encode, search, limits, Metrics(), stall_seconds=0.1, lanes=2)
    engine.start()

    def ask(rows: list[int]) -> asyncio.Task[Found]:
        work = Work(encoder.prepare(rows), 3, NO_ROWS)
        return asyncio.create_task(engine.run(work, tuple(rows), time.monotonic() + 5))

    try:
        first = ask([49])
        for row in range(8):
            await ask([row])
            await asyncio.sleep(0.03)
        assert went_on == 8 and "has been running for more than" in (engine.trouble() or "")
        stuck.set()
        await first
        assert engine.trouble() is None
    finally:
        stuck.set()
        await engine.close(1)
