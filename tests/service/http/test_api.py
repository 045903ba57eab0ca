"""The rules of the API, over HTTP, on parts made in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.http.app import create_app
from service.http.disconnect import SCOPE_KEY, Disconnects
from testing.fake_parts import item_id, make_parts
from testing.running import Running, running


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    async with running() as started:
        yield started


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def expected(
    anyo: Running, history: list[int], k: int, allowed: set[int] | None = None, seen: bool = False
) -> list[str]:
    """Rank by hand: every item, every score."""
    encoder = anyo.encoder
    scores = encoder.table_ND @ encoder._encode_one(encoder.prepare(history)).astype(np.float32)
    rows = [row for row in np.argsort(-scores, kind="stable").tolist() if allowed is None or row in allowed]
    return [item_id(row) for row in rows if seen or row not in history][:k]


async def test_a_history_is_answered_with_the_best_unseen_items(anyo: Running) -> None:
    answer = await anyo.recommend(history=[item_id(3), item_id(8), item_id(120)], k=7)
    body = answer.json()
    assert ids(answer) == expected(anyo, [3, 8, 120], 7)
    assert [item["rank"] for item in body["items"]] == [1, 2, 3, 4, 5, 6, 7]
    assert body["items"][0]["title"] == anyo.parts.catalog.titles[anyo.parts.catalog.row(ids(answer)[0]) or 0]
    assert body["artifact"] == {"name": "fake", "version": "0123456789ab", "recipe": "fake-recipe"}
    assert (body["source"], body["ignored_items"], body["degraded"]) == ("model", [], [])
    assert set(body) == {
        "request_id", "items", "artifact", "timings_ms", "source", "ignored_items", "degraded",
    }  # fmt: skip


async def test_order_matters_and_the_newest_item_comes_last(anyo: Running) -> None:
    forward = await anyo.recommend(history=[item_id(1), item_id(2)])
    backward = await anyo.recommend(history=[item_id(2), item_id(1)])
    assert ids(forward) == expected(anyo, [1, 2], 10) != ids(backward)


async def test_the_score_is_the_inner_product(anyo: Running) -> None:
    best = (await anyo.recommend(history=[item_id(5)], k=1)).json()["items"][0]
    row = anyo.parts.catalog.row(best["item_id"])
    assert best["score"] == pytest.approx(float(anyo.encoder.table_ND[row] @ anyo.encoder.table_ND[5]), rel=1e-5)


async def test_seen_and_excluded_items(anyo: Running) -> None:
    with_seen = ids(await anyo.recommend(history=[item_id(5)], exclude_seen=False, k=50))
    assert with_seen == expected(anyo, [5], 50, seen=True) and item_id(5) in with_seen
    first, second = ids(await anyo.recommend(history=[item_id(5)], k=2))
    assert ids(await anyo.recommend(history=[item_id(5)], k=1, exclude=[first, "no such item"])) == [second]


async def test_items_too_old_to_be_read_are_still_seen() -> None:
    async with running(make_parts(items=60, limit=4)) as anyo:
        history = list(range(55))
        answer = await anyo.recommend(history=[item_id(row) for row in history], k=50)
        assert sorted(ids(answer)) == [item_id(row) for row in range(55, 60)]
        assert anyo.encoder.batches == [[4]]


async def test_unknown_items_are_ignored_and_listed_once(anyo: Running) -> None:
    answer = await anyo.recommend(history=["x", item_id(3), "y", "x", ""], k=3)
    assert answer.json()["ignored_items"] == ["x", "y", ""]
    assert ids(answer) == expected(anyo, [3], 3)


async def test_422_only_if_nothing_usable_is_left_and_no_user_is_given(anyo: Running) -> None:
    for body in ({}, {"history": []}, {"history": ["x", "y"]}):
        answer = await anyo.recommend(**body)
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "no_usable_history"
        assert answer.json()["error"]["field"] == "history"
    assert "'x', 'y'" in answer.json()["error"]["message"]
    for body in ({"user_id": "nobody"}, {"user_id": "nobody", "history": ["x"]}):
        answer = await anyo.recommend(**body)
        assert (answer.status_code, answer.json()["source"]) == (200, "popular")


async def test_an_unknown_user_gets_popular_items_of_the_categories_asked_for(anyo: Running) -> None:
    popularity = anyo.parts.catalog.popularity
    order = sorted(range(200), key=lambda row: (-popularity[row], row))
    answer = await anyo.recommend(user_id="nobody", k=5)
    assert ids(answer) == [item_id(row) for row in order[:5]]
    assert answer.json()["items"][0]["score"] == popularity[order[0]]
    travel = [row for row in order if row % 3 == 1]
    answer = await anyo.recommend(user_id="nobody", k=4, categories=["travel"], exclude=[item_id(travel[0])])
    assert ids(answer) == [item_id(row) for row in travel[1:5]]


async def test_categories_filter_before_the_search(anyo: Running) -> None:
    allowed = {row for row in range(200) if row % 3 in (0, 2)}
    answer = await anyo.recommend(history=[item_id(4), item_id(6)], k=150, categories=["mystery", "cooking"])
    assert ids(answer) == expected(anyo, [4, 6], 150, allowed)
    answer = await anyo.recommend(history=[item_id(4)], categories=["mistery"])
    assert answer.status_code == 422
    assert "'mistery'" in answer.json()["error"]["message"] and "'mystery'" in answer.json()["error"]["message"]


async def test_fewer_than_k_only_when_fewer_are_eligible(anyo: Running) -> None:
    assert len(ids(await anyo.recommend(history=[item_id(4)], k=1000))) == 199
    assert len(ids(await anyo.recommend(history=[item_id(4)], k=1000, exclude_seen=False))) == 200
    everything = [item_id(row) for row in range(200)]
    assert ids(await anyo.recommend(history=[item_id(4)], exclude=everything)) == []
    assert ids(await anyo.recommend(user_id="nobody", exclude=everything)) == []


async def test_a_stored_history_comes_before_the_given_one(anyo: Running) -> None:
    events = [{"item_id": item_id(row), "timestamp": 100 + row} for row in (9, 7)]
    answer = await anyo.client.post("/users/anna/events", json={"events": events})
    counted = {"stored": 2, "duplicates": 0, "too_old": 0, "total": 2}
    assert answer.json() == {"user_id": "anna", **counted, "unknown_items": []}
    assert ids(await anyo.recommend(user_id="anna")) == expected(anyo, [7, 9], 10)
    assert ids(await anyo.recommend(user_id="anna", history=[item_id(50)])) == expected(anyo, [7, 9, 50], 10)
    assert ids(await anyo.recommend(user_id="anna", history=["x"])) == expected(anyo, [7, 9], 10)


async def test_a_repeated_history_comes_from_the_cache_with_the_same_answer(anyo: Running) -> None:
    first = await anyo.recommend(history=[item_id(1), item_id(2)], k=20)
    second = await anyo.recommend(history=[item_id(1), item_id(2)], k=20)
    other = await anyo.recommend(history=[item_id(1), item_id(2)], k=3, categories=["travel"])
    assert [answer.json()["source"] for answer in (first, second, other)] == ["model", "cache", "cache"]
    assert first.json()["items"] == second.json()["items"]
    assert len(anyo.encoder.batches) == 1
    async with running(user_cache_entries=0) as without:
        for _ in range(2):
            assert (await without.recommend(history=[item_id(1)])).json()["source"] == "model"


async def test_requests_share_a_computation_only_if_everything_is_the_same(anyo: Running) -> None:
    blocker = await anyo.occupy_device()
    same: dict[str, Any] = {"history": [item_id(1), item_id(2)]}
    others = [{"k": 3}, {"categories": ["travel"]}, {"exclude": [item_id(30)]}, {"exclude_seen": False}, {}, {}]
    asked = [asyncio.create_task(anyo.recommend(**same, **other)) for other in others]
    while anyo.service.recommender(None).engine.load()[0] < 5:
        await asyncio.sleep(0.005)
    anyo.encoder.gate.set()
    together = [ids(answer) for answer in await asyncio.gather(*asked)]
    await blocker
    assert sum(map(len, anyo.encoder.batches)) <= 1 + 5, "the two that are the same are one entry"
    assert together == [ids(await anyo.recommend(**same, **other)) for other in others]
    assert len({tuple(answer) for answer in together}) >= 4


async def test_free_titles_are_read_beside_ids(anyo: Running) -> None:
    plain = await anyo.recommend(history=[item_id(1)])
    mixed = await anyo.recommend(history=[{"title": "A brand new thing"}, item_id(1)])
    alone = await anyo.recommend(history=[{"title": "A brand new thing"}])
    again = await anyo.recommend(history=[{"title": " A brand new thing "}, item_id(1)])
    assert ids(plain) != ids(mixed) != ids(alone) and len(ids(alone)) == 10
    assert again.json()["source"] == "cache"
    assert anyo.metric("anyo_cache_requests_total", cache="title", result="hit") == 1


async def test_free_text_on_a_model_that_reads_ids_is_409_with_advice() -> None:
    async with running(make_parts(reads_text=False)) as anyo:
        answer = await anyo.recommend(history=[item_id(1), {"title": "new"}])
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert error["code"] == "cannot_read_text" and "GET /items" in error["message"]


async def test_a_store_that_is_away_degrades_the_answer_and_fails_the_append(
    anyo: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError("disk gone")

    for name in ("history", "append"):
        monkeypatch.setattr(anyo.service._inner_store, name, broken)
    answer = await anyo.recommend(user_id="anna", history=[item_id(3)])
    assert answer.json()["degraded"] == ["store"] and ids(answer) == expected(anyo, [3], 10)
    answer = await anyo.recommend(user_id="anna")
    assert (answer.json()["source"], answer.json()["degraded"]) == ("popular", ["store"])
    answer = await anyo.client.post("/users/anna/events", json={"events": [{"item_id": "x"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_outcome_unknown")
    assert [anyo.metric("anyo_store_up", op=op) for op in ("read", "write", "list")] == [0, 0, 1]
    assert (await anyo.client.get("/readyz")).status_code == 200, "recommending goes on without the store"


async def test_a_full_queue_is_429_with_retry_after_and_the_service_recovers() -> None:
    async with running(max_batch_tokens=12, max_queued_tokens=12, user_cache_entries=0) as anyo:
        first = await anyo.occupy_device()
        asked = [asyncio.create_task(anyo.recommend(history=[item_id(row)] * 7)) for row in range(7)]
        while sum(task.done() for task in asked) < 6:
            await asyncio.sleep(0.01)
        anyo.encoder.gate.set()
        answers = await asyncio.gather(first, *asked)
        assert sorted(answer.status_code for answer in answers) == [200] * 2 + [429] * 6
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1
        assert anyo.metric("anyo_rejected_total", reason="queue_full") == 6
        assert (await anyo.recommend(history=[item_id(1)])).status_code == 200
        too_long = await anyo.recommend(history=[item_id(1)] * 13)
        assert (too_long.status_code, too_long.json()["error"]["field"]) == (413, "history")


async def test_past_the_deadline_is_504() -> None:
    async with running(deadline_ms=80, store_timeout_ms=50) as anyo:
        anyo.encoder.gate.clear()
        answer = await anyo.recommend(history=[item_id(1)])
        anyo.encoder.gate.set()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert anyo.metric("anyo_deadline_exceeded_total") == 1


async def test_a_request_the_model_fails_on_is_500_and_no_ones_else(anyo: Running) -> None:
    anyo.encoder.poison = 13
    anyo.encoder.gate.clear()
    asked = [asyncio.create_task(anyo.recommend(history=[item_id(row)])) for row in (1, 13, 2)]
    await asyncio.sleep(0.05)
    anyo.encoder.gate.set()
    answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200, 500, 200]
    assert answers[1].json()["error"]["code"] == "model_error"
    assert (await anyo.client.get("/livez")).status_code == 200


async def test_a_dead_engine_turns_probes_red(anyo: Running) -> None:
    anyo.encoder.fatal = 13
    assert (await anyo.recommend(history=[item_id(13)])).status_code == 503
    for path in ("/livez", "/readyz"):
        answer = await anyo.client.get(path)
        assert answer.status_code == 503 and "device thread died" in answer.json()["error"]["message"]


async def test_a_dead_search_thread_turns_probes_red(anyo: Running) -> None:
    def die(*_: object, **__: object) -> None:
        raise SystemExit("the search thread is told to die")

    anyo.parts.index.search = die  # type: ignore[method-assign]
    assert (await anyo.recommend(history=[item_id(13)])).status_code == 503
    for path in ("/livez", "/readyz"):
        answer = await anyo.client.get(path)
        assert answer.status_code == 503 and "search thread died" in answer.json()["error"]["message"]


async def test_a_store_that_fails_for_one_user_fails_for_nobody_else(
    anyo: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = {"events": [{"item_id": item_id(3), "timestamp": 5}]}
    for user in ("anna", "bert", "carl"):
        await anyo.client.post(f"/users/{user}/events", json=events)
    read = anyo.service._inner_store.history

    async def history(user_id: str) -> Any:
        await asyncio.sleep(0)
        if user_id == "bert":
            raise RuntimeError("a page of the database is damaged")
        return await read(user_id)

    monkeypatch.setattr(anyo.service._inner_store, "history", history)
    answers = await asyncio.gather(*(anyo.recommend(user_id=user) for user in ("anna", "bert", "carl")))
    assert [answer.json()["degraded"] for answer in answers] == [[], ["store"], []]
    assert [answer.json()["source"] == "popular" for answer in answers] == [False, True, False]
    reads = await asyncio.gather(*(anyo.client.get(f"/users/{user}") for user in ("anna", "bert", "carl")))
    assert [answer.status_code for answer in reads] == [200, 503, 200]
    assert (await anyo.client.get("/readyz")).status_code == 200


async def test_several_artifacts_are_chosen_by_name(anyo: Running) -> None:
    answer = await anyo.recommend(history=[item_id(1)], artifact="fake")
    assert answer.status_code == 200
    answer = await anyo.recommend(history=[item_id(1)], artifact="other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_artifact")
    assert "fake" in answer.json()["error"]["message"]


WRONG = [
    ({"history": ["a"], "hist": 1}, "hist", "known are history, user_id, k"),
    ({"history": ["a"], "k": 0}, "k", "greater than or equal to 1"),
    ({"history": ["a"], "k": 1001}, "k", "less than or equal to 1000"),
    ({"history": ["a"], "k": "5"}, "k", "integer"),
    ({"history": ["a"], "k": True}, "k", "integer"),
    ({"history": ["a", 3]}, "history.1", "an id (a string)"),
    ({"history": [{"title": "  "}]}, "history.0.title", "blank"),
    ({"history": [{"title": "x", "id": "y"}]}, "history.0.id", "known are title"),
    ({"history": "a"}, "history", "array"),
    ({"history": ["a"] * 10_001}, "history", "10000"),
    ({"user_id": 5}, "user_id", "string"),
    ({"user_id": ""}, "user_id", "at least 1"),
    ({"history": ["a"], "rerank": "x"}, "rerank", "object"),
    ({"history": ["a"], "rerank": {"artifact": "fake", "depth": 1}}, "rerank.depth", "known are artifact, recipe"),
    ({"history": ["a"], "explain": 1}, "explain", "boolean"),
    ({"history": ["a"], "exclude_seen": "no"}, "exclude_seen", "boolean"),
    ([1], "body", "object"),
]


@pytest.mark.parametrize(("body", "field", "says"), WRONG, ids=[str(case[0])[:40] for case in WRONG])
async def test_a_wrong_field_is_named_with_what_is_allowed(body: Any, field: str, says: str) -> None:
    async with running(warmup_requests=0) as anyo:
        answer = await anyo.client.post("/recommend", json=body)
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["field"] == field
        assert says in error["message"]


async def test_bodies_that_cannot_be_read(anyo: Running) -> None:
    post = anyo.client.post
    headers = {"content-type": "application/json"}
    for body in (b"", b"{", b'{"history":["\\ud800"]}', b"\xff"):
        answer = await post("/recommend", content=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_json")
    answer = await post("/recommend", content=b'{"history":["a"]}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and "application/json" in answer.json()["error"]["message"]
    answer = await post("/recommend", content=b" " * 1_048_577, headers=headers)
    assert answer.status_code == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    answer = await post("/recommend", content=chunks(), headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


async def test_a_body_declared_too_large_is_refused_unread(anyo: Running) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"99999999")]
    scope = {"type": "http", "method": "POST", "path": "/recommend", "raw_path": b"/recommend", "query_string": b""}
    await create_app(anyo.service)({**scope, "headers": headers}, receive, send)
    assert sent[0]["status"] == 413 and b"too_large" in sent[1]["body"]


@pytest.mark.parametrize("when", ["in the middle of its body", "just after it"])
async def test_a_client_that_leaves_early_costs_nothing(anyo: Running, when: str) -> None:
    body, departures = b'{"history":["item-0003"]}', Disconnects()
    messages = [{"type": "http.request", "body": body[:9], "more_body": True}, {"type": "http.disconnect"}]
    if when == "just after it":
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        departures.leave()

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": "/recommend", "raw_path": b"/recommend", "query_string": b""}
    headers = [(b"content-type", b"application/json")]
    await create_app(anyo.service)({**scope, "headers": headers, SCOPE_KEY: departures}, receive, send)
    assert anyo.encoder.batches == [] and anyo.metric("anyo_cancelled_total") == 1
    assert sum(anyo.metric("anyo_requests_total", endpoint="/recommend", recipe=recipe, status="499")
               for recipe in ("none", "fake-recipe")) == 1  # fmt: skip


async def test_every_answer_carries_its_id_and_its_times(anyo: Running) -> None:
    for path in ("/items", "/nope", "/livez", "/metrics", "/"):
        answer = await anyo.client.get(path, headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert "total;dur=" in answer.headers["server-timing"]
    answer = await anyo.recommend(history=[item_id(1)])
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    stages = {part.split(";")[0].strip() for part in answer.headers["server-timing"].split(",")}
    assert stages == set(answer.json()["timings_ms"]) == {"assemble", "queue", "forward", "search", "total"}
    forged = await anyo.client.get("/livez", headers={"X-Request-ID": "a b\tc{}"})
    assert forged.headers["x-request-id"] != "a b\tc{}"


async def test_errors_have_one_shape_everywhere(anyo: Running) -> None:
    client = anyo.client
    answers = [
        (404, await client.get("/nope")),
        (404, await client.get("/items/nope")),
        (404, await client.get("/users/nobody")),
        (405, await client.get("/recommend")),
        (405, await client.put("/users/anna")),
        (422, await client.get("/items?limit=1000")),
        (422, await client.get("/items?limt=10")),
        (422, await client.post("/users/u/events", json={"events": []})),
        (422, await client.post("/users/" + "u" * 257 + "/events", json={"events": [{"item_id": "x"}]})),
    ]
    for status, answer in answers:
        assert answer.status_code == status
        error = answer.json()["error"]
        assert set(error) - {"field"} == {"code", "message", "request_id"}
        assert error["request_id"] == answer.headers["x-request-id"]
    assert answers[3][1].headers["allow"] == "POST"


async def test_items_are_found_by_title_and_paged(anyo: Running) -> None:
    get = anyo.client.get
    first = (await get("/items?query=TITLE mystery&limit=50")).json()
    second = (await get(f"/items?query=TITLE mystery&limit=50&offset={first['next']}")).json()
    found = [item["item_id"] for item in first["items"] + second["items"]]
    assert len(found) == 67 and second["next"] is None
    assert set(found) == {item_id(row) for row in range(0, 200, 3)}
    assert (await get("/items?query=nothing")).json() == {"items": [], "next": None}
    item = (await get("/items/item-0007")).json()
    assert item["title"] == "Title 7 of the travel shelf" and item["categories"] == ["travel"]


async def test_users_are_appended_to_read_listed_and_forgotten(anyo: Running) -> None:
    client, user = anyo.client, "/users/a%2Fb"
    events = [{"item_id": "item-0001", "event_id": "e1", "timestamp": 5}, {"item_id": "gone"}]
    appended = (await client.post(user + "/events", json={"events": events})).json()
    counted = {"stored": 2, "duplicates": 0, "too_old": 0, "total": 2}
    assert appended == {"user_id": "a/b", **counted, "unknown_items": ["gone"]}
    again = (await client.post(user + "/events", json={"events": events[:1]})).json()
    assert (again["stored"], again["duplicates"]) == (0, 1)
    conflict = await client.post(user + "/events", json={"events": [{"item_id": "item-0002", "event_id": "e1"}]})
    assert (conflict.status_code, conflict.json()["error"]["code"]) == (409, "event_conflict")
    read = (await client.get(user)).json()
    assert [event["title"] for event in read["events"]] == ["Title 1 of the travel shelf", None]
    assert [row["user_id"] for row in (await client.get("/users?query=/")).json()["items"]] == ["a/b"]
    assert (await client.delete(user)).json() == {"user_id": "a/b", "deleted": 2}
    assert (await client.get(user)).status_code == 404
    assert (await client.delete(user)).json()["deleted"] == 0


async def test_only_encoded_slashes_belong_to_an_id(anyo: Running) -> None:
    client, events = anyo.client, {"events": [{"item_id": "item-0001"}]}
    for path in ("/users/a%2fevents/events", "/users/%2F/events", "/users/%25%2F%E3%81%82/events"):
        assert (await client.post(path, json=events)).status_code == 200
    names = {row["user_id"] for row in (await client.get("/users")).json()["items"]}
    assert names == {"a/events", "/", "%/あ"}
    deleted = await client.delete("/users/a/events")
    assert deleted.status_code == 405 and deleted.headers["allow"] == "POST", "it is not the user 'a/events'"
    assert len((await client.get("/users/a%2Fevents")).json()["events"]) == 1
    unknown = await client.get("/users/a/b%2Fc")
    assert unknown.status_code == 404 and "'/users/a/b/c'" in unknown.json()["error"]["message"]
    assert (await client.get("/items/a%2Fb")).json()["error"]["message"].startswith("item 'a/b'")


async def test_a_wrong_method_is_told_all_that_there_are(anyo: Running) -> None:
    for path, allowed in {"/users/x": "DELETE, GET, HEAD", "/traffic": "GET, HEAD, PUT", "/recommend": "POST"}.items():
        answer = await anyo.client.patch(path)
        assert answer.status_code == 405 and answer.headers["allow"] == allowed
        assert f"allowed: {allowed}" in answer.json()["error"]["message"]


async def test_artifacts_say_what_they_can_do(anyo: Running) -> None:
    row = (await anyo.client.get("/artifacts")).json()["items"][0]
    assert row["default"] and row["reads"] == ["ids", "text"] and row["items"] == 200 and row["history_limit"] == 50
    assert row["categories"] == ["cooking", "mystery", "travel"]
    answer = await anyo.recommend(history=row["examples"][0])
    assert answer.json()["source"] == "model", "an example is not answered from the warm-up's cache"


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
_ids = st.integers(0, 220).map(item_id)
_likely = st.fixed_dictionaries(
    {},
    optional={
        "history": st.lists(_ids | st.fixed_dictionaries({"title": st.text(max_size=30)}) | _json, max_size=6) | _json,
        "user_id": st.text(max_size=5) | _json,
        "k": st.integers(-1, 1002) | _json,
        "exclude_seen": st.booleans() | _json,
        "exclude": st.lists(_ids | _json, max_size=4) | _json,
        "categories": st.lists(st.sampled_from(["travel", "cooking", "none"]), max_size=3) | _json,
        "artifact": st.none() | _json,
        "rerank": _json,
        "diversity": st.fixed_dictionaries({"mmr": st.floats(-1, 2) | _json}) | _json,
        "explain": _json,
    },
)


async def test_no_body_whatever_makes_a_500(anyo: Running) -> None:
    loop = asyncio.get_running_loop()

    async def post(body: str) -> httpx.Response:
        return await anyo.client.post("/recommend", content=body, headers={"content-type": "application/json"})

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(body=_likely | _json)
    def try_one(body: Any) -> None:
        answer = asyncio.run_coroutine_threadsafe(post(json.dumps(body)), loop).result(10)
        assert answer.status_code in (200, 404, 422), (body, answer.text)
        content = answer.json()
        assert ("items" in content) == (answer.status_code == 200)

    await asyncio.to_thread(try_one)
