"""Writing under load: batches, refusals, clients that leave, dense requests first, failures, an orderly end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from modeling.generation.api import ListQuery
from modeling.methods.base_ranking import RankPrompt
from service.engine.batcher import Limits
from service.engine.device_lock import DeviceLock
from service.engine.generative import GenerativeEngine
from service.engine.work import RankWork, WriteWork
from service.errors import DeadlineExceeded
from service.http.app import create_app
from service.observability.metrics import Metrics
from testing.fake_parts import item_id, make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Running, running


def both(**given: Any) -> Any:
    parts = make_parts()
    return running(parts, generative=make_generative_parts(parts), **{"generative_batch_requests": 8, **given})


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    async with both() as started:
        yield started


async def queued(anyo: Running, number: int) -> None:
    while anyo.metric("anyo_generative_queue_depth") < number:
        await asyncio.sleep(0.002)


def ask(anyo: Running, row: int, **body: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(anyo.write(history=[item_id(row)], **body))


async def test_what_waits_is_written_together_where_its_settings_agree(anyo: Running) -> None:
    first = await anyo.occupy_writer()
    waiting = [ask(anyo, row, beams=beams) for row, beams in ((1, 2), (2, 3), (3, 2), (4, 3), (5, 2))]
    await queued(anyo, 5)
    anyo.writer.gate.set()
    answers = await asyncio.gather(first, *waiting)
    assert anyo.writer.batches == [1, 3, 2]
    assert [answer.json()["beams"] for answer in answers] == [4, 2, 3, 2, 3, 2]
    alone = await anyo.write(history=[item_id(3)], beams=2)
    assert alone.json()["items"] == answers[3].json()["items"], "the same alone and in a batch"


async def test_identical_requests_are_written_once(anyo: Running) -> None:
    first = await anyo.occupy_writer()
    twins = [ask(anyo, 7) for _ in range(4)]
    await queued(anyo, 1)
    await asyncio.sleep(0.02)
    anyo.writer.gate.set()
    await asyncio.gather(first, *twins)
    assert anyo.writer.batches == [1, 1]
    assert anyo.metric("anyo_generated_texts_total", recipe="fake-writing") == 8


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async with both(generative_queued_requests=2) as anyo:
        await anyo.write(history=[item_id(0)])
        first = await anyo.occupy_writer()
        waiting = [ask(anyo, row) for row in (1, 2)]
        await queued(anyo, 2)
        refused = await anyo.write(history=[item_id(3)])
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "2 of 2 requests" in refused.json()["error"]["message"]
        assert anyo.metric("anyo_rejected_total", reason="generative_queue_full") == 1
        streamed = await anyo.client.post("/recommend/generative?stream=true", json={"history": [item_id(3)]})
        assert streamed.status_code == 429, "before its first event a stream has a status"
        assert (await anyo.recommend(history=[item_id(3)], k=1)).status_code in (200, 504)
        anyo.writer.gate.set()
        await asyncio.gather(first, *waiting)


async def test_dense_requests_come_first_and_generative_ones_are_refused_first() -> None:
    async with both(generative_dense_waiting=3, max_batch_requests=1) as anyo:
        on_device = await anyo.occupy_device()
        writing = ask(anyo, 5)
        dense = [asyncio.create_task(anyo.recommend(history=[item_id(row)])) for row in range(4)]
        while anyo.metric("anyo_queue_depth") < 4:
            await asyncio.sleep(0.002)
        steps = anyo.writer.steps
        refused = await anyo.write(history=[item_id(6)])
        assert refused.status_code == 429 and "4 dense requests wait" in refused.json()["error"]["message"]
        assert anyo.metric("anyo_rejected_total", reason="generative_after_dense") == 1
        await asyncio.sleep(0.05)
        assert anyo.writer.steps == steps, "nothing is written while dense requests wait"
        anyo.writer.step_s = 0.05
        done: list[str] = []
        writing.add_done_callback(lambda _: done.append("writing"))
        for task in dense:
            task.add_done_callback(lambda _: done.append("dense"))
        anyo.encoder.gate.set()
        await asyncio.gather(on_device, writing, *dense)
        assert done == ["dense"] * 4 + ["writing"]


async def test_a_dense_request_waits_for_one_step_of_a_long_text_only(anyo: Running) -> None:
    anyo.writer.step_s = 0.05
    writing = ask(anyo, 5)
    while anyo.writer.steps < 2:
        await asyncio.sleep(0.002)
    assert (await anyo.recommend(history=[item_id(3)])).status_code == 200
    assert not writing.done(), "seven steps take longer than the dense request waited"
    assert (await writing).status_code == 200


async def test_the_deadline_ends_the_writing() -> None:
    async with both(generative_deadline_ms=100) as anyo:
        anyo.writer.step_s = 0.04
        steps = anyo.writer.steps
        answer = await anyo.write(history=[item_id(1)])
        assert answer.status_code == 504
        await asyncio.sleep(0.2)
        assert anyo.writer.steps - steps < 6, "of seven"
        anyo.writer.step_s = 0
        assert (await anyo.write(history=[item_id(1)])).status_code == 200


class PassByPass:
    """A ranker that takes two hundred passes for any candidates; `passes` counts those that began."""

    reads, history_limit, passes = ("ids",), 5, 0

    def read_titles(self, titles: Any) -> Any:
        raise NotImplementedError

    def prepare_candidates(self, history: Any, candidates: Any, user_id: str | None = None) -> RankPrompt:
        return RankPrompt(tuple(history), tuple(candidates))

    def divide(self, prompt: Any, most: int, *, turn: Any) -> Any:
        raise NotImplementedError

    def score(self, prompts: Any, *, turn: Any) -> Any:
        for _ in range(200):
            with turn():
                self.passes += 1
                time.sleep(0.01)
        return [np.zeros(len(prompt.candidates), np.float32) for prompt in prompts]


async def test_the_deadline_ends_a_ranking_before_its_next_pass_though_the_device_is_free() -> None:
    model: Any = PassByPass()
    engine = GenerativeEngine(
        model, Limits(64, 4, 64), Metrics(), recipe="slow", catalog_size=9, device=DeviceLock(), max_dense_waiting=4
    )
    engine.start()
    with pytest.raises(DeadlineExceeded):
        await engine.score(RankWork(model.prepare_candidates([1], [2, 3])), "key", time.monotonic() + 0.1)
    await engine.close(10)
    assert model.passes < 15, "ten fit into its time, and one may just have begun"


class OneByOne(PassByPass):
    """A ranker that needs one pass for each candidate; `asked` has the first candidates of the prompts."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.held = threading.Event()

    def score(self, prompts: Any, *, turn: Any) -> Any:
        for prompt in prompts:
            with turn():
                self.asked.append(prompt.candidates[0])
                if prompt.candidates[0] > 1:
                    self.held.wait(10)
        return [np.zeros(len(prompt.candidates), np.float32) for prompt in prompts]


async def test_a_ranking_is_answered_when_it_is_scored_and_not_when_those_behind_it_are() -> None:
    """Though they were taken from the queue together; and one that nobody waits for any more is not scored."""
    model: Any = OneByOne()
    engine = GenerativeEngine(
        model, Limits(64, 4, 64), Metrics(), recipe="slow", catalog_size=9, device=DeviceLock(), max_dense_waiting=4
    )
    works = [RankWork(model.prepare_candidates([1], [number])) for number in (1, 2, 3)]
    engine.start()
    first, second, third = (
        asyncio.create_task(engine.score(work, number, time.monotonic() + 30)) for number, work in enumerate(works)
    )
    await asyncio.wait_for(first, 10)
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    model.held.set()
    await asyncio.wait_for(second, 10)
    await engine.close(10)
    assert model.asked == [1, 2]


class Leaver:
    """A client of the bare application that leaves when it has seen enough."""

    def __init__(self, anyo: Running, query: bytes, body: bytes) -> None:
        self.sent: list[bytes] = []
        self.gone = asyncio.Event()
        self._given = [{"type": "http.request", "body": body, "more_body": False}]
        scope = {
            "type": "http", "method": "POST", "path": "/recommend/generative", "raw_path": b"/recommend/generative",
            "query_string": query, "root_path": "",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "http_version": "1.1", "scheme": "http", "server": ("localhost", 80), "client": None, "asgi": {},
        }  # fmt: skip
        self.task = asyncio.create_task(create_app(anyo.service)(scope, self._receive, self._send))  # type: ignore[arg-type]

    async def _receive(self) -> Any:
        if self._given:
            return self._given.pop()
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message.get("body", b""))


@pytest.mark.parametrize("query", [b"", b"stream=true"], ids=["whole", "stream"])
async def test_a_client_that_leaves_ends_the_writing(anyo: Running, query: bytes) -> None:
    anyo.writer.step_s = 0.03
    steps = anyo.writer.steps
    client = Leaver(anyo, query, b'{"history":["item-0003"]}')
    while anyo.writer.steps - steps < 3 or (query and not any(b"step" in each for each in client.sent)):
        await asyncio.sleep(0.002)
    client.gone.set()
    await client.task
    await asyncio.sleep(0.3)
    assert anyo.writer.steps - steps < 6, "of seven"
    assert not any(b"answer" in each for each in client.sent)
    labels = {"endpoint": "/recommend/generative", "recipe": "fake-writing", "status": "499"}
    assert anyo.metric("anyo_requests_total", **labels) == 1 and anyo.metric("anyo_cancelled_total") == 1
    anyo.writer.step_s = 0
    assert (await anyo.write(history=[item_id(3)])).status_code == 200, "the same request, asked again"


async def test_who_asks_for_the_same_just_as_its_writing_was_given_up_gets_an_answer(anyo: Running) -> None:
    engine, model = anyo.service.generative(None, None).engine, anyo.writer
    work = WriteWork(model.prepare([3]), ListQuery(5), model.default)
    steps = model.steps
    model.gate.clear()
    first = asyncio.create_task(engine.run(work, "same", time.monotonic() + 20))
    while model.steps == steps:
        await asyncio.sleep(0.002)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = asyncio.create_task(engine.run(work, "same", time.monotonic() + 20))
    model.gate.set()
    time.sleep(0.2)  # the event loop hears of the end of the first only after the second has joined it
    assert len((await second).written.rows_K) == 5
    assert len(model.batches) == 2


async def test_one_bad_request_fails_alone_and_the_writing_goes_on(anyo: Running) -> None:
    anyo.writer.poison = 13
    first = await anyo.occupy_writer()
    waiting = [ask(anyo, row) for row in (1, 13, 2)]
    await queued(anyo, 3)
    anyo.writer.gate.set()
    answers = await asyncio.gather(first, *waiting)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]


async def test_a_dead_thread_fails_its_waiters_and_turns_readiness_red(anyo: Running) -> None:
    anyo.writer.fatal = 13
    answer = await anyo.write(history=[item_id(13)])
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_dead"
    for probe in ("/livez", "/readyz"):
        red = await anyo.client.get(probe)
        assert red.status_code == 503 and "generation thread died" in red.json()["error"]["message"]
    assert (await anyo.write(history=[item_id(1)])).status_code == 503
    assert (await anyo.recommend(history=[item_id(1)])).status_code == 200, "dense requests are still answered"


async def test_a_step_that_hangs_is_trouble_and_waiting_for_dense_requests_is_none() -> None:
    async with both(stall_seconds=1) as anyo:
        on_device = await anyo.occupy_device()
        writing = ask(anyo, 5)
        await asyncio.sleep(1.2)
        engine = anyo.service.generative(None, None).engine
        assert engine.trouble() is None, "it waits for its turn"
        anyo.encoder.gate.set()
        await asyncio.gather(on_device, writing)
        stuck = await anyo.occupy_writer()
        await asyncio.sleep(1.2)
        assert "a step of generation" in (engine.trouble() or "")
        anyo.writer.gate.set()
        await stuck
        assert engine.trouble() is None


async def test_draining_answers_what_is_being_written_and_fails_the_rest_in_time(anyo: Running) -> None:
    anyo.writer.step_s = 0.02
    writing = ask(anyo, 5)
    while not anyo.writer.steps:
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.03)
    await anyo.service.drain(5)
    assert (await writing).status_code == 200
    async with both() as other:
        stuck = await other.occupy_writer()
        draining = asyncio.create_task(other.service.drain(0.1))
        answer = await stuck
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "draining"
        other.writer.gate.set()
        await draining
