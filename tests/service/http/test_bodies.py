"""Bodies that are compressed, in another character set, or wrong in many places: what is said, and what it costs."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import AnyoError, TooLarge
from service.http.routes.bodies import MISTAKES_MADE, decoded, first_mistakes
from service.http.routes.common import input_error
from service.http.schemas import AppendRequest, Body, RecommendRequest, TrafficRequest
from testing.running import Running, running

GOOD = b'{"history":["item-0003"],"k":1}'
LIMIT = 100_000


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    async with running() as started:
        yield started


async def post(anyo: Running, body: bytes, **headers: str) -> tuple[int, Any]:
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    answer = await anyo.client.post("/recommend", content=body, headers=sent)
    return answer.status_code, answer.json()


@pytest.mark.parametrize("encoding", ["gzip", "X-GZIP", "identity, gzip", "identity"])
async def test_a_compressed_body_is_understood(anyo: Running, encoding: str) -> None:
    body = gzip.compress(GOOD) if "gzip" in encoding.lower() else GOOD
    status, answer = await post(anyo, body, content_encoding=encoding)
    assert status == 200 and len(answer["items"]) == 1


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x" * 500])
async def test_another_encoding_is_named_with_those_that_are_read(anyo: Running, encoding: str) -> None:
    status, answer = await post(anyo, GOOD, content_encoding=encoding)
    assert (status, answer["error"]["code"]) == (415, "unsupported_media")
    assert encoding[:60] in answer["error"]["message"] and "gzip" in answer["error"]["message"]
    assert len(answer["error"]["message"]) < 300


@pytest.mark.parametrize(
    "damage", [lambda z: z[:-3], lambda z: z + b"!", lambda z: b"{}", lambda z: z + z, lambda z: b""]
)
async def test_a_damaged_stream_is_named(anyo: Running, damage: Callable[[bytes], bytes]) -> None:
    status, answer = await post(anyo, damage(gzip.compress(GOOD)), content_encoding="gzip")
    assert (status, answer["error"]["code"]) == (400, "not_gzip")


def test_what_is_decompressed_is_bounded() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    made: list[int] = []

    class Counted:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def decompress(self, data: bytes, limit: int) -> bytes:
            made.append(limit)
            return bytes(self._inner.decompress(data, limit))

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        right = zlib.decompressobj
        context.setattr(zlib, "decompressobj", lambda window: Counted(right(window)))
        with pytest.raises(TooLarge, match="once it is decompressed"):
            decoded(bomb, "gzip", LIMIT)
    assert made == [LIMIT + 1]
    assert decoded(gzip.compress(bytes(LIMIT)), "gzip", LIMIT) == bytes(LIMIT)


@pytest.mark.parametrize("charset", ["utf-16", "latin-1", "shift_jis", '"cp932"'])
async def test_another_charset_is_named(anyo: Running, charset: str) -> None:
    status, answer = await post(anyo, GOOD, content_type=f"application/json; charset={charset}")
    assert status == 415 and charset in answer["error"]["message"] and "UTF-8" in answer["error"]["message"]
    for right in ("utf-8", "UTF8", '"utf-8"', "us-ascii"):
        assert (await post(anyo, GOOD, content_type=f"application/json; charset={right}"))[0] == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"\xef\xbb\xbf" + GOOD, "byte order mark of UTF-8"),
        (GOOD.decode().encode("utf-16"), "byte order mark of UTF-16"),
        (GOOD.decode().encode("utf-16-le"), "like UTF-16"),
        (gzip.compress(GOOD, mtime=0), "content-encoding: gzip"),
        (b"", "it is empty"),
        (b"{", "EOF"),
    ],
)
async def test_a_body_that_is_no_json_is_told_why(anyo: Running, body: bytes, says: str) -> None:
    status, answer = await post(anyo, body)
    assert (status, answer["error"]["code"]) == (400, "not_json") and says in answer["error"]["message"]


def many(number: int, first: str = "x") -> dict[str, int]:
    return {f"{first}{place}": 1 for place in range(number)}


FLOODS: dict[str, tuple[type[Body], Any, str]] = {
    "rows instead of ids": (
        RecommendRequest,
        {"history": [{"item_id": "a", "title": "x", "ts": 1}] * 5000},
        "history.0",
    ),
    "many fields in every row": (RecommendRequest, {"history": [many(13)] * 4000}, "history.0"),
    "many fields in one row": (RecommendRequest, {"history": ["a", {"title": "x", **many(50_000)}]}, "history.1.x0"),
    "many fields, the title last": (RecommendRequest, {"history": [{**many(50_000), "title": "x"}]}, "history.0.x0"),
    "many fields of the body": (RecommendRequest, {"history": ["a"], **many(50_000)}, "x0"),
    "a wrong entry behind many": (RecommendRequest, {"history": ["a"] * 5000 + [5], **many(5000)}, "history.5000"),
    "numbers as ids": (RecommendRequest, {"exclude": [1] * 10_000}, "exclude.0"),
    "numbers as categories": (RecommendRequest, {"categories": [1] * 100}, "categories.0"),
    "events without an item": (AppendRequest, {"events": [many(200)] * 500}, "events.0"),
    "an event with many fields": (AppendRequest, {"events": [{"item_id": "a", **many(50_000)}]}, "events.0.x0"),
    "weights": (TrafficRequest, {"weights": dict.fromkeys(many(50_000), "much")}, "weights"),
    "one long name": (RecommendRequest, {"x" * 900_000: 1}, "xxx"),
    "one long value": (RecommendRequest, {"k": "x" * 900_000}, "k"),
    "a long list as a value": (RecommendRequest, {"user_id": [1] * 300_000}, "user_id"),
    "a long list in lists": (RecommendRequest, {"user_id": [[["x" * 900_000] * 9] * 9]}, "user_id"),
    "a huge number": (RecommendRequest, {"k": 10**4000}, "k"),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_of_many_mistakes_the_first_are_made_and_shown_in_short(flood: tuple[type[Body], Any, str]) -> None:
    model, content, field = flood
    body = json.dumps(content).encode()
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)
    mistakes = first_mistakes(caught.value, body, model)
    assert len(mistakes) <= 2 * MISTAKES_MADE
    error: AnyoError = input_error(mistakes, model, body)
    assert error.field is not None and error.field.startswith(field) and len(error.field) < 100
    assert len(error.message) < 600


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_refusing_costs_no_more_than_reading_a_right_body_of_the_same_kind(flood: tuple[type[Body], Any, str]) -> None:
    """Counted in calls of Python, so that a busy machine changes nothing."""
    import sys

    model, content, _ = flood
    body, calls = json.dumps(content).encode(), 0
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(body)

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        input_error(first_mistakes(caught.value, body, model), model, body)
    finally:
        sys.setprofile(None)
    assert calls < 150_000, "a few for every object that is looked through, none for every mistake"


async def test_a_long_echo_is_cut_on_every_way(anyo: Running) -> None:
    long, client = "x" * 50_000, anyo.client
    answers = [
        await client.post("/recommend", json={"history": [long]}),
        await client.post("/recommend", json={"history": ["item-0001"], "artifact": long}),
        await client.post("/recommend", json={"history": ["item-0001"], "categories": [long]}),
        await client.post("/recommend", json={"history": [{"title": long}]}),
        await client.post("/feedback", json={"request_id": "a", "item_id": long}),
        await client.post("/recommend", content=b"{}", headers={"content-type": long}),
        await client.get("/items/" + long),
        await client.get("/" + long),
        await client.get("/items?artifact=" + long),
        await client.get("/feedback/summary?baseline=" + long),
        await client.put("/" + long),
    ]
    for answer in answers:
        assert 400 <= answer.status_code < 500 and len(answer.content) < 3000, answer.text[:200]
