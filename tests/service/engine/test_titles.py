"""Free titles: counted where they are admitted, read in turns, refused where they would wait too long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.encoder.prompt import FreeItem
from service.engine.titles import BATCH_POSITIONS, MOST_POSITIONS, TitleQueue, positions_of
from service.errors import DeadlineExceeded, ModelError, NotReady, Overloaded
from service.observability.metrics import Metrics
from testing.fake_parts import item_id
from testing.running import running

LONG = "x" * 1900
IN_A_BATCH = BATCH_POSITIONS // MOST_POSITIONS


class Reader:
    """Reads titles when `gate` is open, and fails on those that hold "poison"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, titles: Sequence[str]) -> list[FreeItem]:
        self.gate.wait()
        if any("poison" in title for title in titles):
            raise RuntimeError("poisoned title")
        self.batches.append(list(titles))
        return [FreeItem(title) for title in titles]


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.gate.set()


def queue_of(reader: Reader, most: int = 1 << 20, patience_s: float = 0.0) -> TitleQueue:
    return TitleQueue(reader, Metrics(), most_positions=most, patience_s=patience_s)


def titles_of(who: str, number: int) -> list[str]:
    return [f"{who} {place} {LONG}" for place in range(number)]


def ask(queue: TitleQueue, titles: Sequence[str], within: float = 60) -> asyncio.Task[list[FreeItem]]:
    return asyncio.create_task(queue.read(titles, time.monotonic() + within))


async def test_a_flood_of_long_titles_lets_one_title_pass(reader: Reader) -> None:
    queue = queue_of(reader)
    reader.gate.clear()
    floods = [ask(queue, titles_of(f"flood-{number}", 50)) for number in range(4)]
    await asyncio.sleep(0)
    small = ask(queue, ["one title"])
    await asyncio.sleep(0)
    assert queue.positions > 190 * MOST_POSITIONS
    reader.gate.set()
    assert [item.title for item in await small] == ["one title"]
    place = next(place for place, batch in enumerate(reader.batches) if "one title" in batch)
    assert place <= 1, "it waits for the pass that runs, and is in the next"
    for number, flood in enumerate(floods):
        assert {item.title for item in await flood} == set(titles_of(f"flood-{number}", 50))
    assert queue.positions == 0 and sum(map(len, reader.batches)) == 201
    assert max(map(len, reader.batches)) <= IN_A_BATCH + 1, "where the short one is among them"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_everyone_is_read_whole_and_nobody_waits_for_more_than_their_own(sizes: list[int]) -> None:
    async def read_all() -> None:
        reader = Reader()
        queue = queue_of(reader)
        reader.gate.clear()
        asked = [ask(queue, titles_of(str(number), size)) for number, size in enumerate(sizes)]
        await asyncio.sleep(0)
        reader.gate.set()
        for number, task in enumerate(asked):
            assert sorted(item.title for item in await task) == sorted(titles_of(str(number), sizes[number]))
        order = [title for batch in reader.batches for title in batch]
        for number, size in enumerate(sizes):
            last = order.index(titles_of(str(number), size)[-1])
            # The first request was alone when its first titles were taken.
            assert last < sum(min(size, other) for other in sizes) + IN_A_BATCH
        queue.close()

    asyncio.run(read_all())


async def test_what_would_wait_too_long_is_refused_and_the_small_are_not(reader: Reader) -> None:
    queue = queue_of(reader, patience_s=1.0)
    queue._rate = 10 * MOST_POSITIONS  # ten long titles a second
    reader.gate.clear()
    first = ask(queue, titles_of("first", 30))  # alone, it is read however long that takes
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="take about") as refused:
        await queue.read(titles_of("second", 30), time.monotonic() + 60)
    assert refused.value.retry_after is not None and refused.value.retry_after >= 2
    small = ask(queue, ["one title"])
    await asyncio.sleep(0)
    reader.gate.set()
    assert len(await small) == 1 and len(await first) == 30
    assert queue._metrics.registry.get_sample_value("anyo_rejected_total", {"reason": "titles_full"}) == 1


async def test_positions_are_bounded_where_they_are_admitted(reader: Reader) -> None:
    queue = queue_of(reader, most=20 * MOST_POSITIONS)
    reader.gate.clear()
    first = ask(queue, titles_of("first", 20))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="of 1280 positions"):
        await queue.read(titles_of("second", 15), time.monotonic() + 60)
    small = ask(queue, titles_of("small", 5))
    reader.gate.set()
    assert len(await first) == 20 and len(await small) == 5


async def test_who_leaves_or_is_late_is_not_read(reader: Reader) -> None:
    queue = queue_of(reader)
    reader.gate.clear()
    first = ask(queue, titles_of("first", 1))
    await asyncio.sleep(0)
    gone, late = ask(queue, titles_of("gone", 20)), ask(queue, titles_of("late", 20), within=0.05)
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(DeadlineExceeded):
        await late
    assert queue.positions == 0
    reader.gate.set()
    await first
    assert reader.batches == [titles_of("first", 1)]


async def test_a_title_that_fails_fails_for_nobody_else(reader: Reader) -> None:
    queue = queue_of(reader)
    reader.gate.clear()
    first = ask(queue, ["blocker"])
    await asyncio.sleep(0)
    bad, good = ask(queue, ["poison", "fine"]), ask(queue, ["other"])
    await asyncio.sleep(0)
    reader.gate.set()
    await first
    with pytest.raises(ModelError):
        await bad
    assert [item.title for item in await good] == ["other"]
    assert len(await ask(queue, ["afterwards"])) == 1


async def test_a_closed_queue_answers_those_who_wait(reader: Reader) -> None:
    queue = queue_of(reader)
    reader.gate.clear()
    waiting = [ask(queue, titles_of(str(number), 3)) for number in range(5)]
    await asyncio.sleep(0)
    queue.close()
    reader.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, NotReady | list) for result in results)
    assert any(isinstance(result, NotReady) for result in results)
    with pytest.raises(NotReady):
        await queue.read(["late"], time.monotonic() + 5)


def test_positions_are_those_of_the_longest_title_that_is_read() -> None:
    assert [positions_of(title) for title in ("a", "ab c", "テ", LONG)] == [3, 6, 5, MOST_POSITIONS]


async def test_over_http_a_flood_is_told_to_come_back_and_one_title_passes() -> None:
    async with running(
        user_cache_entries=0, title_cache_entries=0, max_queued_tokens=4096, max_batch_tokens=4096
    ) as anyo:
        gate, right = threading.Event(), anyo.encoder.read_titles

        def read(titles: Sequence[str]) -> list[FreeItem]:
            gate.wait()
            return right(titles)

        anyo.encoder.read_titles = read  # type: ignore[method-assign]
        flood = [
            asyncio.create_task(anyo.recommend(history=[{"title": t} for t in titles_of(str(n), 30)])) for n in range(4)
        ]
        try:
            while sum(task.done() for task in flood) < 2:
                await asyncio.sleep(0.005)
            small = asyncio.create_task(anyo.recommend(history=[{"title": "one title"}, item_id(3)]))
            await asyncio.sleep(0.02)
            assert 4096 >= anyo.metric("anyo_title_queue_tokens") > 30 * MOST_POSITIONS
        finally:
            gate.set()
        answers = await asyncio.gather(*flood)
        assert (await small).status_code == 200
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "overloaded"
        assert anyo.metric("anyo_title_queue_tokens") == 0
