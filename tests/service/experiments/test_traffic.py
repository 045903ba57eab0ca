"""The split keeps its shares and its users; the shadow is compared and never waited for."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from service.artifacts.loading import LoadedArtifact
from service.experiments.traffic import SHADOW_BACKLOG, choose
from testing.fake_parts import item_id, make_parts
from testing.running import Running, running

USERS = [f"user-{number}" for number in range(20_000)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


def opens(folder: Path, device: str) -> LoadedArtifact:
    return dataclasses.replace(make_parts(seed=len(folder.name)), version=folder.name)


async def loaded(anyo: Running, *names: str) -> None:
    for name in names:
        assert (await anyo.client.post(f"/artifacts/{name}/load")).status_code == 200


async def put(anyo: Running, status: int = 200, **body: Any) -> Any:
    answer = await anyo.client.put("/traffic", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_each_artifact_gets_its_share_of_users() -> None:
    counts = Counter(choose({"a": 0.7, "b": 0.2, "c": 0.1}, user) for user in USERS)
    for name, share in {"a": 0.7, "b": 0.2, "c": 0.1}.items():
        assert abs(counts[name] / len(USERS) - share) < 0.02
    assert {choose({"a": 5.0}, user) for user in USERS[:100]} == {"a"}


def test_when_weights_change_only_as_many_users_move_as_must() -> None:
    before = {user: choose({"a": 0.9, "b": 0.1}, user) for user in USERS}
    after = {user: choose({"a": 0.8, "b": 0.2}, user) for user in USERS}
    moved = Counter((before[user], after[user]) for user in USERS if before[user] != after[user])
    assert set(moved) == {("a", "b")} and abs(moved["a", "b"] / len(USERS) - 0.1) < 0.015
    scaled = [choose({"b": 20.0, "a": 80.0}, user) for user in USERS]
    assert scaled == list(after.values()), "the unit and the order of weights do not matter"


async def test_requests_follow_the_split_and_users_stay(root: Path) -> None:
    async with running(opens=opens, artifacts_root=root) as anyo:
        await loaded(anyo, "second")
        shown = await put(anyo, weights={"fake": 1, "second": 1})
        assert shown == {"default": "fake", "weights": {"fake": 1, "second": 1}, "shadow": None}
        for user in USERS[:12]:
            expected = choose({"fake": 1.0, "second": 1.0}, user)
            for history in ([], [item_id(1)]):
                answer = await anyo.recommend(user_id=user, history=history)
                assert answer.json()["artifact"]["name"] == expected
        headers = {"x-request-id": "abc"}
        names = set()
        for _ in range(3):
            answer = await anyo.client.post("/recommend", json={"history": [item_id(1)]}, headers=headers)
            names.add(answer.json()["artifact"]["name"])
        assert names == {choose({"fake": 1.0, "second": 1.0}, "abc")}
        named = await anyo.recommend(user_id=USERS[0], artifact="second")
        assert named.json()["artifact"]["name"] == "second", "a request that names an artifact gets it"
        refused = (await anyo.client.post("/artifacts/second/unload")).json()["error"]
        assert refused["code"] == "in_use" and "PUT /traffic" in refused["message"]
        states = {row["name"]: row["state"] for row in (await anyo.client.get("/artifacts")).json()["items"]}
        assert states == {"fake": "active", "second": "active"}
        await anyo.client.post("/artifacts/second/activate")
        assert (await anyo.client.get("/traffic")).json()["weights"] == {}, "activating ends the split"
        answers = [(await anyo.recommend(user_id=user)).json()["artifact"]["name"] for user in USERS[:8]]
        assert set(answers) == {"second"}


async def test_what_cannot_be_set_is_refused_and_changes_nothing(root: Path) -> None:
    async with running(opens=opens, artifacts_root=root) as anyo:
        await loaded(anyo, "second")
        before = await put(anyo, weights={"fake": 3, "second": 1})
        for status, body in (
            (404, {"weights": {"fake": 1, "nothing": 1}}),
            (404, {"shadow": "nothing"}),
            (422, {"weights": {"fake": 0, "second": 0}}),
            (422, {"weights": {"fake": -1}}),
            (422, {"weights": {"fake": 1e300}}),
            (422, {"weights": {"fake": 1, "second": 1}, "shadow": "second"}),
            (422, {"shadow": "fake"}),
            (422, {"weight": {}}),
        ):
            assert "error" in await put(anyo, status, **body)
        assert (await anyo.client.get("/traffic")).json() == before


async def compared(anyo: Running, count: int) -> Any:
    for _ in range(400):
        shadow = (await anyo.client.get("/traffic")).json()["shadow"]
        if shadow["compared"] + shadow["failed"] >= count:
            return shadow
        await asyncio.sleep(0.01)
    raise AssertionError(f"not compared: {shadow}")


async def test_the_shadow_answers_silently_and_its_difference_is_measured(root: Path) -> None:
    async with running(opens=opens, artifacts_root=root, user_cache_entries=0) as anyo:
        await loaded(anyo, "second", "third")
        await put(anyo, shadow="second")
        answers = [(await anyo.recommend(history=[item_id(row)], k=10)).json() for row in range(5)]
        assert {answer["artifact"]["name"] for answer in answers} == {"fake"}
        shadow = await compared(anyo, 5)
        expected = []
        for row, answer in enumerate(answers):
            other = (await anyo.recommend(history=[item_id(row)], k=10, artifact="second")).json()
            expected.append(len({i["item_id"] for i in other["items"]} & {i["item_id"] for i in answer["items"]}) / 10)
        assert shadow["overlap"] == pytest.approx(sum(expected) / 5, abs=1e-4) and 0 < shadow["overlap"] < 1
        assert (shadow["compared"], shadow["dropped"], shadow["failed"]) == (5, 0, 0)
        assert shadow["served_ms"] > 0 and shadow["shadow_ms"] > 0
        assert anyo.metric("anyo_shadow_total", result="compared") == 5
        assert anyo.metric("anyo_shadow_overlap_ratio_count") == 5 and anyo.metric("anyo_shadow_seconds_count") == 5
        assert anyo.metric("anyo_answers_total", source="model") == 10, "only what users got is counted as answered"
        await put(anyo, shadow="third")
        assert (await anyo.client.get("/traffic")).json()["shadow"]["compared"] == 0, "another comparison begins"


async def test_a_shadow_that_hangs_or_fails_is_nobodys_wait(root: Path) -> None:
    async with running(opens=opens, artifacts_root=root, user_cache_entries=0) as anyo:
        await loaded(anyo, "second")
        encoder: Any = anyo.service.recommender("second").parts.encoder
        await put(anyo, shadow="second")
        encoder.poison = 13
        assert (await anyo.recommend(history=[item_id(13)])).status_code == 200
        assert (await compared(anyo, 1))["failed"] == 1
        encoder.gate.clear()
        for row in range(SHADOW_BACKLOG + 10):
            assert (await anyo.recommend(history=[item_id(row)])).status_code == 200
        shadow = (await anyo.client.get("/traffic")).json()["shadow"]
        assert shadow["dropped"] >= 8, "what waits for it is bounded"
        assert anyo.metric("anyo_shadow_total", result="dropped") == shadow["dropped"]
        encoder.gate.set()
        await compared(anyo, 2)


async def test_under_load_the_shadow_is_left_out(root: Path) -> None:
    async with running(opens=opens, artifacts_root=root, user_cache_entries=0, max_batch_requests=2) as anyo:
        await loaded(anyo, "second")
        await put(anyo, shadow="second")
        first = await anyo.occupy_device()
        queued = [asyncio.create_task(anyo.recommend(history=[item_id(row)])) for row in range(4)]
        while anyo.metric("anyo_queue_depth") < 4:
            await asyncio.sleep(0.005)
        popular = await anyo.recommend(user_id="nobody")
        assert popular.status_code == 200
        assert (await anyo.client.get("/traffic")).json()["shadow"]["dropped"] == 1
        anyo.encoder.gate.set()
        await asyncio.gather(first, *queued)
