"""Metrics count what happened, have bounded labels, and are documented."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from service.observability.metrics import Metrics
from testing.fake_parts import item_id
from testing.fake_writer import make_generative_parts
from testing.running import running


def ours(page: str) -> dict[str, tuple[str, ...]]:
    """Return name -> labels of every metric of ours that a scrape shows."""
    families = {}
    for family in text_string_to_metric_families(page):
        if family.name.startswith("anyo_"):
            name = family.name + ("_total" if family.type == "counter" else "")
            families[name] = tuple(sorted({label for sample in family.samples for label in sample.labels} - {"le"}))
    return families


async def test_a_request_is_counted_everywhere_it_passes() -> None:
    async with running(warmup_requests=5) as anyo:
        for _ in range(2):
            await anyo.recommend(history=[item_id(1), item_id(2)])
        await anyo.recommend(user_id="nobody")
        await anyo.recommend(history=["x"])
        await anyo.client.get("/no/such/path")
        recipe = {"endpoint": "/recommend", "recipe": "fake-recipe"}
        assert anyo.metric("anyo_requests_total", **recipe, status="200") == 3
        assert anyo.metric("anyo_requests_total", **recipe, status="422") == 1
        assert anyo.metric("anyo_requests_total", endpoint="other", recipe="none", status="404") == 1
        assert anyo.metric("anyo_request_seconds_count", **recipe) == 4
        for stage, count in {"history": 1, "assemble": 2, "queue": 2, "forward": 1, "search": 2}.items():
            assert anyo.metric("anyo_stage_seconds_count", endpoint="/recommend", stage=stage) == count, stage
        for source in ("model", "cache", "popular"):
            assert anyo.metric("anyo_answers_total", source=source) == 1
        assert anyo.metric("anyo_cache_requests_total", cache="user_vector", result="hit") == 1
        assert anyo.metric("anyo_batch_requests_count") == 1, "golden answers and warm-up are not users"
        assert anyo.metric("anyo_batch_tokens_sum") == 2
        assert anyo.metric("anyo_queue_tokens") == 0 and anyo.metric("anyo_queue_tokens_limit") == 65_536
        assert anyo.metric("anyo_index_items") == 200 and anyo.metric("anyo_index_recall") == 1
        assert anyo.metric("anyo_artifact_info", name="fake", version="0123456789ab", recipe="fake-recipe") == 1
        assert anyo.metric("anyo_store_seconds_count", op="history") == 1
        assert "anyo_event_loop_lag_seconds_count" in (await anyo.client.get("/metrics")).text


async def test_labels_do_not_grow_with_what_clients_send() -> None:
    async with running(warmup_requests=0) as anyo:

        async def series() -> int:
            page = (await anyo.client.get("/metrics")).text
            return sum(line.startswith("anyo_") for line in page.splitlines())

        counts = []
        for group in range(3):
            for number in range(10):
                name = f"{group}-{number}"
                await anyo.client.get(f"/items/{name}")
                await anyo.client.get(f"/nope/{name}")
                await anyo.client.get(f"/users/{name}", headers={"x-request-id": name})
                await anyo.recommend(history=[name], artifact=name)
            counts.append(await series())
        assert counts[1] == counts[2]


async def test_every_metric_has_its_row_with_its_labels(repository: Path) -> None:
    async with running(generative=make_generative_parts()) as anyo:
        await anyo.recommend(history=[item_id(1)], user_id="nobody")
        shown = ours((await anyo.client.get("/metrics")).text)
    rows = {}
    for line in (repository / "docs" / "operations" / "metrics.md").read_text(encoding="utf-8").splitlines():
        cells = line.split("|")
        if len(cells) > 4 and "`anyo_" in cells[1]:
            rows[cells[1].strip(" `")] = tuple(sorted(re.findall(r"`(\w+)`", cells[3])))
    only_with_cuda = {name: rows.pop(name) for name in ("anyo_device_memory_bytes", "anyo_device_memory_limit_bytes")}
    assert rows == shown
    assert set(only_with_cuda.values()) == {()}


async def test_readiness_and_a_forward_pass_that_runs_on_can_be_seen() -> None:
    async with running(stall_seconds=1) as anyo:
        assert anyo.metric("anyo_ready") == 1
        assert anyo.metric("anyo_forward_running_seconds") == 0
        first = await anyo.occupy_device()
        await asyncio.sleep(0.05)
        assert 0.05 <= anyo.metric("anyo_forward_running_seconds") < 60
        await asyncio.sleep(1)
        assert anyo.metric("anyo_ready") == 0, "stalled"
        anyo.encoder.gate.set()
        await first
        assert anyo.metric("anyo_forward_running_seconds") == 0
        assert anyo.metric("anyo_ready") == 1
        anyo.service.begin_draining()
        assert anyo.metric("anyo_ready") == 0


def test_asking_for_device_memory_neither_starts_cuda_nor_shows_the_cpu() -> None:
    for device in ("cpu", "cuda"):
        metrics = Metrics()
        metrics.watch_device(device)
        assert "anyo_device_memory" not in metrics.page().decode()
    assert not torch.cuda.is_initialized()


@pytest.mark.gpu
def test_device_memory_is_what_torch_has_taken() -> None:
    metrics = Metrics()
    metrics.watch_device("cuda")
    held = torch.zeros(2**26, device="cuda")
    taken = metrics.registry.get_sample_value("anyo_device_memory_bytes")
    limit = metrics.registry.get_sample_value("anyo_device_memory_limit_bytes")
    assert taken is not None and limit is not None
    assert held.numel() * 4 <= taken < limit


def test_buckets_span_a_millisecond_to_thirty_seconds() -> None:
    metrics = Metrics()
    metrics.request_seconds("/recommend", "r").observe(0.001)
    metrics.request_seconds("/recommend", "r").observe(29)
    value = metrics.registry.get_sample_value
    labels = {"endpoint": "/recommend", "recipe": "r"}
    assert value("anyo_request_seconds_bucket", {**labels, "le": "0.001"}) == 1
    assert value("anyo_request_seconds_bucket", {**labels, "le": "30.0"}) == 2
