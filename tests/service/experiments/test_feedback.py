"""Feedback is joined with the rank that was logged, counted once, and adds up to rates with honest intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import StartError
from service.experiments.feedback import ARTIFACTS_COUNTED, LABELS, REPORTS_PER_ANSWER, Feedback
from service.experiments.intervals import newcombe, wilson
from service.observability.metrics import Metrics
from testing.fake_parts import item_id, make_parts
from testing.running import Running, running


async def report(anyo: Running, request_id: str, item: str) -> Any:
    return await anyo.client.post("/feedback", json={"request_id": request_id, "item_id": item})


async def test_a_report_is_joined_with_its_answer_and_counted_once() -> None:
    async with running() as anyo:
        answer = (await anyo.recommend(history=[item_id(1)], k=5)).json()
        third = answer["items"][2]["item_id"]
        joined = (await report(anyo, answer["request_id"], third)).json()
        assert joined == {
            "request_id": answer["request_id"], "item_id": third, "artifact": answer["artifact"],
            "hit": True, "rank": 3, "duplicate": False,
        }  # fmt: skip
        again = (await report(anyo, answer["request_id"], third)).json()
        assert again["duplicate"] and again["rank"] == 3
        miss = (await report(anyo, answer["request_id"], "something else")).json()
        assert (miss["hit"], miss["rank"], miss["duplicate"]) == (False, None, False)
        assert anyo.metric("anyo_feedback_total", artifact="fake", hit="true") == 1
        assert anyo.metric("anyo_feedback_total", artifact="fake", hit="false") == 1
        assert anyo.metric("anyo_feedback_rank_sum", artifact="fake") == 3
        row = (await anyo.client.get("/feedback/summary")).json()["items"][0]
        assert (row["answers"], row["rated"], row["hits"], row["hit_rate"]["value"]) == (1, 1, 1, 1.0)


async def test_unknown_answers_are_404_and_the_oldest_are_forgotten_first() -> None:
    async with running(feedback_entries=3) as anyo:
        asked = [(await anyo.recommend(history=[item_id(row)])).json()["request_id"] for row in range(5)]
        statuses = [(await report(anyo, request_id, "x")).status_code for request_id in asked]
        assert statuses == [404, 404, 200, 200, 200]
        unknown = (await report(anyo, "never", "x")).json()["error"]
        assert (unknown["code"], unknown["field"]) == ("unknown_request", "request_id")
    async with running(feedback_entries=0) as anyo:
        answer = (await anyo.recommend(history=[item_id(1)])).json()
        assert (await report(anyo, answer["request_id"], "x")).status_code == 404


async def test_popular_answers_and_ones_with_your_own_id_are_remembered_too() -> None:
    async with running() as anyo:
        answer = await anyo.client.post("/recommend", json={"user_id": "new"}, headers={"x-request-id": "mine"})
        first = answer.json()["items"][0]["item_id"]
        assert (await report(anyo, "mine", first)).json()["rank"] == 1


def test_memory_is_bounded_in_every_direction() -> None:
    metrics = Metrics()
    feedback = Feedback(10, metrics)
    parts = make_parts(items=20)
    for number in range(30):
        feedback.remember(f"r{number}", parts, [item_id(row % 20) for row in range(1000)], "model")
    assert len(feedback._shown) == 1 and feedback._items == 1000, "long answers push out earlier ones"
    feedback.remember("r29", parts, ["a"], "model")
    assert feedback._items == 1 and feedback.report("r29", "a").rank == 1, "an id that comes again is the newer answer"
    for number in range(REPORTS_PER_ANSWER - 1):
        feedback.report("r29", f"other {number}")
    with pytest.raises(Exception, match="more are not counted"):
        feedback.report("r29", "one more")
    for number in range(ARTIFACTS_COUNTED + LABELS):
        object.__setattr__(parts, "name", f"artifact {number}")
        feedback.remember("r", parts, ["a"], "model")
        feedback.report("r", "a")
    assert len(feedback._tallies) == ARTIFACTS_COUNTED
    page = metrics.page().decode()
    assert page.count("anyo_feedback_rank_sum{") == LABELS + 1 and 'artifact="other"' in page


def test_rates_and_differences_by_artifact() -> None:
    feedback = Feedback(1000, Metrics())
    for name, hits, answers in (("a", 48, 80), ("b", 56, 70)):
        parts = make_parts(items=20, name=name)
        for number in range(answers):
            feedback.remember(f"{name}{number}", parts, ["x", "y"], "model")
            feedback.report(f"{name}{number}", "x" if number < hits else "z")
            feedback.report(f"{name}{number}", "y" if number < hits else "w")  # a second one changes no rate
    summary = feedback.summary("a")
    assert summary["baseline"] == {"name": "a", "version": "0123456789ab"}
    baseline, other = summary["items"]
    assert baseline["minus_baseline"] is None and (other["rated"], other["hits"]) == (70, 56)
    difference = other["minus_baseline"]["hit_rate"]
    assert [round(difference[part], 4) for part in ("value", "low", "high")] == [0.2, 0.0524, 0.3339]
    assert feedback.summary("nothing")["baseline"] is None


def test_intervals_are_those_of_the_published_examples() -> None:
    """Newcombe (1998): 81 of 263 for one rate; 56 of 70 against 48 of 80, and 9 of 10 against 3 of 10, for two."""
    one = wilson(81, 263)
    assert one is not None and (round(one.low, 4), round(one.high, 4)) == (0.2553, 0.3662)
    two = newcombe(wilson(56, 70), wilson(48, 80))
    assert two is not None and (round(two.low, 4), round(two.high, 4)) == (0.0524, 0.3339)
    few = newcombe(wilson(9, 10), wilson(3, 10))
    assert few is not None and (round(few.low, 4), round(few.high, 4)) == (0.1705, 0.8090)
    assert wilson(0, 0) is None and newcombe(None, one) is None
    none, all_of_them = wilson(0, 10), wilson(10, 10)
    assert none is not None and none.low == 0 and none.high < 0.35
    assert all_of_them is not None and all_of_them.high == pytest.approx(1) and all_of_them.low > 0.65


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        interval = wilson(int(rng.binomial(60, 0.07)), 60)
        assert interval is not None
        covered += interval.low <= 0.07 <= interval.high
    assert 920 <= covered <= 985


async def test_the_log_file_gets_answers_and_reports_in_order(tmp_path: Path) -> None:
    file = tmp_path / "made" / "feedback.jsonl"
    async with running(feedback_log=file) as anyo:
        answer = (await anyo.recommend(history=[item_id(1)], user_id="anna", k=2)).json()
        await report(anyo, answer["request_id"], answer["items"][1]["item_id"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["answer", "feedback"]
    assert lines[0]["items"] == [item["item_id"] for item in answer["items"]] and lines[1]["rank"] == 2
    assert "anna" not in file.read_text(), "no user ids"
    with pytest.raises(StartError, match="ANYO_FEEDBACK_LOG"):
        Feedback(1, Metrics(), file / "below a file").open()
