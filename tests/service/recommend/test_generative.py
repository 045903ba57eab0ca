"""Recommendations that are written: the rules of `POST /recommend/generative` and `POST /compare`, over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from testing.fake_parts import item_id, make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Running, running


@pytest.fixture
async def anyo() -> AsyncIterator[Running]:
    async with both() as started:
        yield started


def both(**given: Any) -> Any:
    parts = make_parts()
    return running(parts, generative=make_generative_parts(parts), **given)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def error(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()["error"]
    return answer.status_code, body["code"], body["message"]


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def stream(anyo: Running, **body: Any) -> httpx.Response:
    return await anyo.client.post("/recommend/generative?stream=true", json=body)


async def test_an_answer_says_what_was_written_and_what_it_stands_for(anyo: Running) -> None:
    answer = await anyo.write(history=[item_id(3), item_id(8)], k=7, beams=5)
    body = answer.json()
    assert set(body) == {
        "request_id", "items", "artifact", "timings_ms", "source", "ignored_items", "degraded", "generated", "tokens",
        "beams", "filled",
    }  # fmt: skip
    assert len(set(ids(answer))) == 7 and not {item_id(3), item_id(8)} & set(ids(answer))
    assert body["artifact"] == {"name": "fake-writer", "version": "ba9876543210", "recipe": "fake-writing"}
    assert len(body["generated"]) == body["beams"] == 5
    titles = dict(zip(anyo.parts.catalog.item_ids, anyo.parts.catalog.titles, strict=True))
    for text in body["generated"]:
        assert text["valid"] == (text["text"] == titles[text["item_id"]])
        assert (text["distance"] == 0) == text["valid"] and text["code"] is None
    assert [text["valid"] for text in body["generated"]] == [True, True, False, True, True]
    reached = {text["item_id"] for text in body["generated"]}
    assert body["filled"] == sum(item not in reached for item in ids(answer)) > 0
    assert body["tokens"] == {"prompt": 2, "new": 5 * 6}
    assert {"assemble", "queue", "prefill", "decode", "ground", "search", "total"} <= set(body["timings_ms"])


async def test_histories_are_read_as_by_the_dense_endpoint(anyo: Running) -> None:
    event = {"item_id": item_id(9), "timestamp": 1.0}
    assert (await anyo.client.post("/users/anna/events", json={"events": [event]})).status_code == 200
    stored = await anyo.write(user_id="anna", history=[item_id(4)])
    assert ids(stored) == ids(await anyo.write(history=[item_id(9), item_id(4)]))
    assert item_id(9) not in ids(stored) and "history" in stored.json()["timings_ms"]
    assert (await anyo.write(history=["x", item_id(4)])).json()["ignored_items"] == ["x"]
    travel = await anyo.write(history=[item_id(4)], k=30, categories=["travel"], exclude=[item_id(1)])
    assert all(int(each[-4:]) % 3 == 1 for each in ids(travel)) and item_id(1) not in ids(travel)
    assert item_id(4) in ids(await anyo.write(history=[item_id(4)], exclude_seen=False, k=1000))
    assert ids(await anyo.write(history=[{"title": "A thing"}])) != ids(
        await anyo.write(history=[{"title": "Another"}])
    )
    popular = (await anyo.write(user_id="nobody", k=3)).json()
    assert popular["source"] == "popular" and len(popular["items"]) == 3
    assert (popular["generated"], popular["tokens"], popular["filled"]) == ([], {"prompt": 0, "new": 0}, 0)
    assert error(await anyo.write(history=["x"]))[:2] == (422, "no_usable_history")
    assert error(await anyo.write(history=[item_id(1)], categories=["mistery"]))[:2] == (422, "unknown_category")


async def test_what_may_be_asked_for_is_limited_by_artifact_and_settings(anyo: Running) -> None:
    for field, given, most in (("beams", 21, 20), ("max_new_tokens", 33, 32)):
        status, code, message = error(await anyo.write(history=[item_id(1)], **{field: given}))
        assert (status, code) == (422, "invalid_input")
        assert f"{field} is {given}" in message and f"at most {most}" in message and "fake-writer" in message
    assert (await anyo.write(history=[item_id(1)], beams=20, max_new_tokens=32)).json()["beams"] == 20
    assert error(await anyo.write(history=[item_id(1)], beams=0))[0] == 422
    async with both(generative_max_beams=2) as strict:
        assert "at most 2" in error(await strict.write(history=[item_id(1)], beams=3))[2]
        assert (await strict.write(history=[item_id(1)])).json()["beams"] == 2, "the artifact's own 4 are too many"
    async with both(generative_batch_tokens=100) as strict:
        status, code, message = error(await strict.write(history=[item_id(1)], beams=20, max_new_tokens=32))
        assert (status, code) == (413, "too_large") and "ANYO_GENERATIVE_BATCH_TOKENS" in message


async def test_the_right_kind_of_artifact_answers_or_an_error_says_which(anyo: Running) -> None:
    assert (await anyo.write(history=[item_id(1)], artifact="fake-writer", recipe="fake-writing")).status_code == 200
    status, code, message = error(await anyo.write(history=[item_id(1)], artifact="fake"))
    assert (status, code) == (409, "wrong_kind") and "POST /recommend" in message
    status, code, message = error(await anyo.recommend(history=[item_id(1)], artifact="fake-writer"))
    assert (status, code) == (409, "wrong_kind") and "POST /recommend/generative" in message
    status, code, message = error(await anyo.write(history=[item_id(1)], recipe="bigrec"))
    assert (status, code) == (404, "unknown_recipe") and "'bigrec'" in message and "fake-writing" in message
    assert error(await anyo.write(history=[item_id(1)], artifact="nope"))[:2] == (404, "unknown_artifact")
    named = await anyo.write(history=[item_id(1)], artifact="fake-writer", recipe="bigrec")
    assert error(named)[0] == 409
    async with running() as dense_only:
        status, code, message = error(await dense_only.write(history=[item_id(1)]))
        assert (status, code) == (404, "no_generative_artifact") and "load it with POST /artifacts" in message
        assert error(await dense_only.client.post("/compare", json={"history": [item_id(1)]}))[0] == 404


async def test_no_answer_ever_holds_an_item_that_it_may_not(anyo: Running) -> None:
    """200 requests with everything a request can ask for; benchmarks.generation.invalid_items does the same 10,000
    times.
    """
    rng, known = random.Random(0), set(anyo.parts.catalog.item_ids)
    for number in range(200):
        history = [item_id(rng.randrange(200)) for _ in range(rng.randint(1, 40))]
        exclude = [item_id(rng.randrange(200)) for _ in range(rng.choice((0, 0, 5, 150)))]
        categories = rng.choice(([], [], ["travel"], ["travel", "cooking"]))
        seen, k = rng.random() < 0.7, rng.choice((1, 5, 10, 100))
        answer = await anyo.write(
            history=history, exclude=exclude, categories=categories, exclude_seen=seen, k=k, beams=rng.randint(1, 20)
        )
        never = {*exclude, *(history if seen else ())}
        eligible = {
            each for each in known - never
            if not categories or set(anyo.parts.catalog.categories[int(each[-4:])]) & set(categories)
        }  # fmt: skip
        found = ids(answer)
        assert set(found) <= eligible and len(set(found)) == len(found) == min(k, len(eligible)), number


async def test_a_model_that_breaks_the_rules_is_nobodys_answer(anyo: Running) -> None:
    anyo.writer.repeats = True
    assert error(await anyo.write(history=[item_id(1)]))[:2] == (500, "model_error")
    anyo.writer.repeats = False
    assert (await anyo.write(history=[item_id(1)])).status_code == 200


async def test_a_stream_sends_the_best_text_so_far_and_then_the_answer(anyo: Running) -> None:
    answer = await stream(anyo, history=[item_id(3)], k=4)
    assert answer.headers["content-type"].startswith("text/event-stream")
    sent = events(answer.text)
    *steps, (last, body) = sent
    assert last == "answer" and steps and all(name == "step" for name, _ in steps)
    numbers = [data["step"] for _, data in steps]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 6
    assert steps[-1][1]["text"] == body["generated"][0]["text"]
    whole = (await anyo.write(history=[item_id(3)], k=4)).json()
    for own in (body, whole):
        del own["request_id"], own["timings_ms"]
    assert body == whole
    assert anyo.metric("anyo_answers_total", source="model") == 2


async def test_a_stream_shows_steps_before_the_end(anyo: Running) -> None:
    anyo.writer.step_s = 0.05
    sent = events((await stream(anyo, history=[item_id(3)])).text)
    assert [data["step"] for name, data in sent if name == "step"] == [1, 2, 3, 4, 5, 6]


async def test_a_refused_stream_has_a_status_of_its_own_and_a_failed_one_ends_with_an_error(anyo: Running) -> None:
    assert error(await stream(anyo, history=["x"]))[:2] == (422, "no_usable_history")
    anyo.writer.poison = 13
    assert error(await stream(anyo, history=[item_id(13)]))[:2] == (500, "model_error")
    anyo.writer.poison = None
    anyo.writer.repeats = True  # seen after the last step only
    (*_, (name, body)) = events((await stream(anyo, history=[item_id(3)])).text)
    assert name == "error" and body["error"]["code"] == "model_error" and body["error"]["request_id"]
    labels = {"endpoint": "/recommend/generative", "recipe": "fake-writing", "status": "500"}
    assert anyo.metric("anyo_requests_total", **labels) == 2, "counted as what it was"


async def test_popular_items_can_be_streamed_too(anyo: Running) -> None:
    ((name, body),) = events((await stream(anyo, user_id="nobody")).text)
    assert name == "answer" and body["source"] == "popular"


async def test_both_ways_side_by_side(anyo: Running) -> None:
    ask = {"history": [item_id(3), item_id(8)], "k": 5, "beams": 3}
    await anyo.recommend(history=ask["history"], k=5)  # in the cache now
    answer = await anyo.client.post("/compare", json=ask)
    body = answer.json()
    assert answer.status_code == 200, answer.text
    assert body["dense"]["source"] == "model", "computed, not from the cache"
    alone = (await anyo.recommend(history=ask["history"], k=5)).json()
    assert body["dense"]["items"] == alone["items"] and body["dense"]["artifact"]["name"] == "fake"
    assert body["generative"]["beams"] == 3 and len(body["generative"]["generated"]) == 3
    totals = [body[each]["timings_ms"]["total"] for each in ("dense", "generative")]
    assert body["ratio"] == pytest.approx(totals[1] / totals[0], rel=0.05, abs=0.006)  # two digits are shown
    shared = {item["item_id"] for item in body["dense"]["items"]} & {
        item["item_id"] for item in body["generative"]["items"]
    }
    assert body["overlap"] == len(shared) / 5
    popular = (await anyo.client.post("/compare", json={"user_id": "nobody"})).json()
    assert popular["ratio"] is None and popular["overlap"] == 1.0
    assert error(await anyo.client.post("/compare", json={**ask, "beams": 21}))[0] == 422
    named = await anyo.client.post("/compare", json={**ask, "generative_artifact": "fake"})
    assert named.status_code == 409 and named.json()["error"]["field"] == "generative_artifact"


async def test_feedback_knows_the_generative_artifact(anyo: Running) -> None:
    answer = (await anyo.write(history=[item_id(3)])).json()
    report = {"request_id": answer["request_id"], "item_id": answer["items"][1]["item_id"]}
    joined = (await anyo.client.post("/feedback", json=report)).json()
    assert (joined["artifact"]["name"], joined["rank"]) == ("fake-writer", 2)
    assert anyo.metric("anyo_feedback_total", artifact="fake-writer", hit="true") == 1


async def test_what_is_written_is_counted(anyo: Running) -> None:
    body = (await anyo.write(history=[item_id(3)], k=10, beams=6)).json()
    recipe = {"recipe": "fake-writing"}
    assert anyo.metric("anyo_generated_tokens_total", **recipe) == body["tokens"]["new"] == 36
    assert anyo.metric("anyo_generated_texts_total", **recipe) == 6
    assert anyo.metric("anyo_invalid_generations_total", **recipe) == 2
    assert anyo.metric("anyo_filled_items_total", **recipe) == body["filled"]
    assert anyo.metric("anyo_grounding_distance_count", **recipe) == 6
    assert anyo.metric("anyo_grounding_distance_sum", **recipe) == pytest.approx(0.4)
    assert anyo.metric("anyo_generative_pass_seconds_count") == 1 + 6, "prefill and steps"
    for stage in ("queue", "prefill", "decode", "ground"):
        assert anyo.metric("anyo_stage_seconds_count", endpoint="/recommend/generative", stage=stage) == 1


async def test_the_list_of_artifacts_tells_the_kinds_apart(anyo: Running) -> None:
    rows = (await anyo.client.get("/artifacts")).json()["items"]
    assert [(row["name"], row["kind"], row["default"]) for row in rows] == [
        ("fake", "dense", True), ("fake-writer", "generative", True),
    ]  # fmt: skip
    assert rows[0]["writes"] is None and rows[1]["dim"] is None
    assert rows[1]["writes"] == {
        "default": {"beams": 4, "max_new_tokens": 12}, "limit": {"beams": 20, "max_new_tokens": 32},
    }  # fmt: skip
    refused = await anyo.client.put("/traffic", json={"weights": {"fake": 1, "fake-writer": 1}})
    assert error(refused)[:2] == (409, "wrong_kind")


async def test_the_only_generative_artifact_can_be_unloaded_and_the_dense_one_goes_on(anyo: Running) -> None:
    assert (await anyo.client.post("/artifacts/fake-writer/activate")).json()["previous"] == "fake-writer"
    running_on_it = await anyo.occupy_writer()
    unloading = asyncio.create_task(anyo.client.post("/artifacts/fake-writer/unload"))
    while "fake-writer" in anyo.service.recommenders:
        await asyncio.sleep(0.01)
    assert error(await anyo.write(history=[item_id(1)]))[1] == "no_generative_artifact"
    anyo.writer.gate.set()
    assert (await running_on_it).status_code == 200, "what had begun ends"
    assert (await unloading).status_code == 200
    assert (await anyo.recommend(history=[item_id(1)])).status_code == 200
    assert error(await anyo.client.post("/artifacts/fake/unload"))[:2] == (409, "in_use")
