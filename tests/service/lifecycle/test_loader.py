"""Nothing is ready before its golden answers came out right, through the path of real requests."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
import torch

from index import FlatIndex
from modeling.inference.encoder_forward import EncoderForward
from service.artifacts.loading import LoadedArtifact
from service.engine.cpu import shares
from service.errors import StartError
from service.http.app import create_app
from service.http.server import _listen, _serve
from service.recommend.dense import ENOUGH_POSITIONS
from service.service import Service
from service.settings import load_settings
from testing.fake_parts import make_parts, opener
from testing.running import running


async def load(*parts: LoadedArtifact, **given: Any) -> Service:
    queue = list(parts)
    settings = load_settings(artifacts=tuple(Path(each.name) for each in parts), store="sqlite:///:memory:", **given)
    service = Service(settings, open_artifact=lambda folder, device: queue.pop(0))
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
    finally:
        await service.close()
    return service


def changed_golden(parts: LoadedArtifact, number: int, **change: Any) -> LoadedArtifact:
    golden = list(parts.golden)
    golden[number] = golden[number].model_copy(update=change)
    return dataclasses.replace(parts, golden=tuple(golden))


async def test_the_right_parts_load() -> None:
    await load(make_parts())


async def test_another_model_than_the_trained_one_is_refused() -> None:
    parts = make_parts()
    encoder: Any = parts.encoder
    encoder.table_ND = encoder.table_ND + 1e-3
    with pytest.raises(StartError, match="not the one that was trained"):
        await load(parts)


async def test_a_model_that_fails_is_refused_with_its_reason_and_logged_as_no_failed_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts = make_parts()
    encoder: Any = parts.encoder
    encoder.table_ND = encoder.table_ND * np.float32("nan")
    with pytest.raises(StartError, match=r"golden histories: the model fails with .* a user vector that is not finite"):
        await load(parts)
    assert "request failed" not in capsys.readouterr().out


async def test_a_model_that_is_right_alone_and_wrong_in_a_batch_is_refused() -> None:
    parts = make_parts()
    encoder: Any = parts.encoder
    right = encoder.encode

    def leaking(prompts: Any) -> np.ndarray:
        vectors = right(prompts)
        return vectors + 0.01 * vectors.sum(0) if len(prompts) > 1 else vectors

    encoder.encode = leaking
    with pytest.raises(StartError, match="not the one that was trained"):
        await load(parts)


async def test_another_index_is_refused() -> None:
    parts = make_parts()
    other = np.roll(parts.encoder.table_ND, 1, axis=0)  # type: ignore[attr-defined]
    with pytest.raises(StartError, match="index or catalog is another one"):
        await load(dataclasses.replace(parts, index=FlatIndex.build(other)))


async def test_a_near_tie_may_swap_but_another_item_may_not() -> None:
    parts = make_parts()
    encoder: Any = parts.encoder
    first, second = (parts.catalog.row(item) for item in parts.golden[3].top[:2])
    top = list(parts.golden[3].top)
    top[0], top[1] = top[1], top[0]
    with pytest.raises(StartError, match="index or catalog is another one"):
        await load(changed_golden(parts, 3, top=top))
    # Twins: their scores differ by less than processors round.
    encoder.table_ND[second] = encoder.table_ND[first] * (1 + 1e-7)
    vectors = encoder.encode([encoder.prepare([parts.catalog.row(i) for i in parts.golden[3].history])])
    twins = changed_golden(
        dataclasses.replace(parts, index=FlatIndex.build(encoder.table_ND), golden=parts.golden[3:4]),
        0,
        top=top,
        vector=vectors[0].tolist(),
    )
    await load(twins)


async def test_parts_without_golden_answers_and_twin_names_are_refused() -> None:
    with pytest.raises(StartError, match=r"golden\.json"):
        await load(dataclasses.replace(make_parts(), golden=()))
    with pytest.raises(StartError, match="two of the artifacts are called 'fake'"):
        await load(make_parts(), make_parts())


async def test_a_queue_smaller_than_the_rehearsal_does_not_matter() -> None:
    await load(make_parts(), max_batch_tokens=12, max_queued_tokens=12)


async def test_two_artifacts_answer_by_name_and_the_first_by_default() -> None:
    first, second = make_parts(name="first"), make_parts(name="second", seed=8)
    queue = [first, second]
    settings = load_settings(artifacts=(Path("a"), Path("b")), store="sqlite:///:memory:")
    service = Service(settings, open_artifact=lambda folder, device: queue.pop(0))
    await service.start()
    assert service.loading is not None
    await service.loading
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answers = {}
        for name in (None, "first", "second"):
            body = {"history": ["item-0001"], "artifact": name}
            answers[name] = (await client.post("/recommend", json=body)).json()
        assert [each["artifact"]["name"] for each in answers.values()] == ["first", "first", "second"]
        assert answers["first"]["items"] != answers["second"]["items"]
        titles = await client.get("/items/item-0001?artifact=second")
        assert titles.status_code == 200
    await service.close()


async def test_a_second_artifact_that_fails_ends_the_server() -> None:
    """Never half of what was asked for: an orchestrator would see a server that is up and lacks an artifact."""
    first, second = make_parts(name="first"), dataclasses.replace(make_parts(name="second"), golden=())
    queue = [first, second]
    settings = load_settings(artifacts=(Path("a"), Path("b")), store="sqlite:///:memory:", port=0)
    service = Service(settings, open_artifact=lambda folder, device: queue.pop(0))
    with _listen("127.0.0.1", 0) as listener, pytest.raises(StartError, match="second"):
        await asyncio.wait_for(_serve(service, listener, lambda url: pytest.fail("it said that it was ready")), 30)


async def test_before_it_is_ready_it_says_so() -> None:
    parts = make_parts()
    service = Service(
        load_settings(artifacts=(Path("a"),), store="sqlite:///:memory:"),
        open_artifact=opener(parts),  # type: ignore[arg-type]
    )
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/livez")).status_code == 200
        for path in ("/readyz", "/items", "/artifacts"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert answer.headers["retry-after"] == "1"
        await service.start()
        assert service.loading is not None
        await service.loading
        assert (await client.get("/readyz")).json() == {"status": "ready"}
    await service.close()


async def test_warm_up_reads_a_title_where_the_model_reads_text() -> None:
    parts = make_parts()
    encoder: Any = parts.encoder
    read: list[str] = []
    right = encoder.read_titles
    encoder.read_titles = lambda titles: read.extend(titles) or right(titles)
    async with running(parts, warmup_requests=3):
        assert len(read) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
async def test_before_the_first_user_every_length_of_a_batch_was_met_by_both_kinds_of_pass(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    met: set[tuple[int, int]] = set()
    monkeypatch.setattr(
        EncoderForward, "meet_lengths", lambda self, positions: met.add((positions, torch.get_num_threads()))
    )
    parts = dataclasses.replace(make_parts(), precision=precision)
    fast: Any = object.__new__(EncoderForward)
    cast(Any, parts.encoder).fast = fast
    cores = shares(2, 0)
    async with running(parts, lanes=2, warmup_requests=1):
        assert met == {(ENOUGH_POSITIONS[precision], threads) for threads in (cores.threads, cores.alone)}
    met.clear()
    async with running(parts, warmup_requests=0):
        assert not met


async def test_the_warm_up_says_how_fast_a_queue_shrinks() -> None:
    parts = make_parts()
    encoder: Any = parts.encoder
    encoder.delay_s = 0.02
    async with running(parts, max_batch_requests=4) as service:
        rate = service.service.registry.get(None).engine.rate()
        assert 4 / 0.2 < rate < 4 * 50 / 0.02, "four histories of one to fifty positions, 20 ms"
    async with running(make_parts(), warmup_requests=0) as service:
        assert service.service.registry.get(None).engine.rate() == 0, "nothing is known without one"
