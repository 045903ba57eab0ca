"""What holds on every route, whatever it does."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from testing.every_route import BODIES, Call, calls
from testing.fake_writer import make_generative_parts
from testing.running import Running, running

CALLS = calls()
EVERY_CALL = pytest.mark.parametrize("call", CALLS, ids=[f"{method} {path}" for method, path, _ in CALLS])
READING = [call for call in CALLS if call[0] == "GET"]


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    async with running(generative=make_generative_parts()) as started:
        yield started


async def send(anyo: Running, call: Call, query: str = "", method: str | None = None) -> httpx.Response:
    body = BODIES.get(call[1]) if call[0] in ("POST", "PUT") else None
    headers = {"content-type": "application/json"} if call[0] != "GET" else {}
    return await anyo.client.request(method or call[0], call[2] + query, json=body, headers=headers)


def test_the_calls_are_those_of_the_service() -> None:
    assert len(CALLS) >= 22 and len({path for _, path, _ in CALLS}) >= 19
    assert {path for method, path, _ in CALLS if method in ("POST", "PUT")} >= set(BODIES)


@EVERY_CALL
async def test_an_unknown_parameter_is_refused(anyo: Running, call: Call) -> None:
    answer = await send(anyo, call, "?dry_run=true")
    assert answer.status_code == 422, answer.text[:200]
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_input", "dry_run")
    assert "unknown parameter 'dry_run'" in error["message"]
    assert anyo.metric("anyo_requests_total", endpoint=_format(call), recipe="none", status="422") == 1


@EVERY_CALL
async def test_an_unforeseen_error_has_the_one_shape(
    anyo: Running, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unforeseen(Exception):
        pass

    app: Any = anyo.client._transport.app  # type: ignore[attr-defined]
    (route,) = [each for each in app.state.routes if each.path == call[1] and call[0] in each.methods]

    @functools.wraps(route.endpoint)
    async def fail(*_: Any, **__: Any) -> None:
        raise Unforeseen("a secret of the inside")

    monkeypatch.setattr(route, "endpoint", fail)
    if hasattr(route, "dependant"):
        monkeypatch.setattr(route.dependant, "call", fail)
    else:
        monkeypatch.setattr(route, "app", fail)
    answer = await send(anyo, call)
    assert answer.status_code == 500 and answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"} and error["code"] == "internal_error"
    assert error["request_id"] == answer.headers["x-request-id"] and "secret" not in answer.text
    if hasattr(route, "dependant"):
        assert anyo.metric("anyo_requests_total", endpoint=_format(call), recipe="none", status="500") == 1


@pytest.mark.parametrize("call", READING, ids=[path for _, path, _ in READING])
async def test_head_is_answered_as_get_without_the_body(anyo: Running, call: Call) -> None:
    await anyo.client.post("/users/anna/events", json=BODIES["/users/{user_id:id}/events"])
    get, head = await send(anyo, call), await send(anyo, call, method="HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


async def test_parameters_are_given_once_and_in_small_numbers(anyo: Running) -> None:
    twice = await anyo.client.get("/items?limit=1&limit=2")
    assert twice.status_code == 422 and "more than once" in twice.json()["error"]["message"]
    many = await anyo.client.get("/items?" + "&".join(f"a{number}=1" for number in range(5000)))
    assert many.status_code == 422 and "more than 32 parameters" in many.json()["error"]["message"]
    long = await anyo.client.get("/items?" + "a" * 50_000 + "=1")
    assert long.status_code == 422 and len(long.content) < 1000
    known = await anyo.client.get("/items?limt=1")
    assert known.json()["error"]["message"] == "unknown parameter 'limt'; known are query, limit, offset, artifact"


def _format(call: Call) -> str:
    return call[1].replace(":id}", "}")
