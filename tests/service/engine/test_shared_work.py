"""What a caller can make expensive on other threads is bounded; what many ask at once is made once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from testing.running import running


async def test_searches_of_the_catalog_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as anyo:
        gate, inside, most = threading.Event(), 0, 0
        right = type(anyo.parts.catalog).search

        def search(self: object, *arguments: object) -> object:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            gate.wait(20)
            inside -= 1
            return right(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(type(anyo.parts.catalog), "search", search)
        asked = [asyncio.create_task(anyo.client.get(f"/items?query={number}")) for number in range(60)]
        try:
            while sum(task.done() for task in asked) < 28:
                await asyncio.sleep(0.005)
            left = asked[0]
            left.cancel()  # its thread goes on, and so does what it takes
            await asyncio.sleep(0.05)
            assert (await anyo.recommend(history=["item-0001"])).status_code == 200
        finally:
            gate.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        statuses = [answer.status_code for answer in answers if not isinstance(answer, BaseException)]
        assert statuses.count(429) == 28 and statuses.count(200) == 31 and most == 1
        assert anyo.metric("anyo_rejected_total", reason="catalog_full") == 28


async def test_a_page_of_metrics_is_written_once_for_all_who_ask_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as anyo:
        gate, written, right = threading.Event(), [], anyo.service.metrics.page

        def page() -> bytes:
            written.append(1)
            gate.wait(20)
            return right()

        monkeypatch.setattr(anyo.service.metrics, "page", page)
        asked = [asyncio.create_task(anyo.client.get("/metrics")) for _ in range(50)]
        await asyncio.sleep(0.1)
        asked[0].cancel()
        gate.set()
        answers = await asyncio.gather(*asked[1:])
        assert all(b"anyo_ready" in answer.content for answer in answers) and len(written) == 1
        assert b"anyo_ready" in (await anyo.client.get("/metrics")).content and len(written) == 2
