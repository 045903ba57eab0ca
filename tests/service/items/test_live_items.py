"""Items that change are found, or gone, from the next request on: in every kind of answer, on every replica."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from testing.fake_parts import item_id, make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Running, running

MEMORY: dict[str, Any] = {"item_store": "sqlite:///:memory:"}
NEW = "A book that is new"
CANDIDATES = [*map(item_id, range(60)), "new"]


async def put(anyo: Running, item: str, status: int = 200, headers: dict[str, str] | None = None, **body: Any) -> Any:
    answer = await anyo.client.put(f"/items/{item}", json={"title": NEW, **body}, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


async def top(anyo: Running, path: str = "/recommend", **body: Any) -> list[str]:
    if path.endswith("/similar"):
        answer = await anyo.client.get(path, params={"k": 200})
    else:
        wanted = {} if path == "/rank" else {"k": 200, "exclude_seen": False}
        answer = await anyo.client.post(path, json={**wanted, **body})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    found = found.get("dense", found)
    assert found.get("degraded", []) == []
    if (why := found.get("explanation")) is not None:
        assert len(why["influence"]["values"]) == len(why["nearest"]["values"]) == len(found["items"])
    return [item["item_id"] for item in found["items"]]


async def listed(anyo: Running, query: str = "") -> list[str]:
    answer = await anyo.client.get("/items", params={"limit": 200, "query": query})
    return [item["item_id"] for item in answer.json()["items"]]


async def everywhere(anyo: Running) -> dict[str, list[str]]:
    """What every way of answering shows. The dense answer to a history is cached as a user vector from the first on."""
    return {
        "dense": await top(anyo, history=[item_id(3)]),
        "popular": await top(anyo, user_id="nobody"),
        "popular of a category": await top(anyo, user_id="nobody", categories=["mystery"]),
        "dense of a category": await top(anyo, history=[item_id(3)], categories=["mystery"]),
        "written": await top(anyo, "/recommend/generative", history=[item_id(3)]),
        "ranked": await top(anyo, "/rank", history=[item_id(3)], candidates=CANDIDATES),
        "ranked by popularity": await top(anyo, "/rank", user_id="nobody", candidates=CANDIDATES),
        "ranked again": await top(anyo, history=[item_id(3)], rerank={"artifact": "fake", "candidates": 200}),
        "explained": await top(anyo, history=[item_id(3), item_id(4)], explain=True, k=100),
        "compared": await top(anyo, "/compare", history=[item_id(3)]),
        "similar": await top(anyo, f"/items/{item_id(3)}/similar"),
        "list": await listed(anyo),
        "popular list": await get_ids(anyo, "/popular?k=1000"),
        "diverse": await top(anyo, history=[item_id(3)], diversity={"mmr": 0.3, "candidates": 1000}),
        "batch": await of_a_batch(anyo),
    }


async def get_ids(anyo: Running, path: str) -> list[str]:
    return [item["item_id"] for item in (await anyo.client.get(path)).json()["items"]]


async def of_a_batch(anyo: Running) -> list[str]:
    answer = await anyo.client.post("/recommend/batch", json={"requests": [{"history": [item_id(3)], "k": 1000}]})
    return [item["item_id"] for item in answer.json()["results"][0]["items"]]


async def test_a_change_is_seen_by_the_next_request_of_every_kind() -> None:
    parts = make_parts(items=60)
    async with running(parts, generative=make_generative_parts(parts), **MEMORY) as anyo:
        before = await everywhere(anyo)
        assert all(item_id(6) in found for found in before.values())
        made = await put(anyo, "new", categories=["mystery", "new"], attributes={"price": 2.5, "tags": ["x"]})
        assert (made["version"], made["changed"]) == (1, True)
        assert {row["artifact"]: row["recommends"] for row in made["artifacts"]} == {"fake": True, "fake-writer": False}
        assert "items that it was trained on only" in made["artifacts"][1]["reason"]
        found = await everywhere(anyo)
        assert [name for name, items in found.items() if "new" not in items] == ["written"]
        assert await top(anyo, history=[item_id(3)], categories=["new"]) == ["new"]
        changes: tuple[dict[str, str] | None, ...] = ({"state": "hidden"}, {"state": "live"}, None)
        for change in changes:
            path = f"/items/{item_id(6)}"
            answer = await (anyo.client.patch(path, json=change) if change else anyo.client.delete(path))
            assert answer.status_code == 200, answer.text
            shown = change == {"state": "live"}
            assert all((item_id(6) in items) == shown for items in (await everywhere(anyo)).values())
        assert (await anyo.client.get(f"/items/{item_id(6)}")).status_code == 404


async def test_scores_are_those_of_an_index_over_the_same_items() -> None:
    parts = make_parts(items=50)
    async with running(parts, **MEMORY) as anyo:
        vectors = {item_id(row): parts.encoder.table_ND[row] for row in range(50)}  # type: ignore[attr-defined]
        rng = np.random.default_rng(1)
        lines = []
        for number in range(700):  # more than a delta holds: some are merged
            name = f"new-{number % 400}"
            vector = rng.normal(size=16).round(3).tolist()
            vectors[name] = np.array(vector, np.float32)
            lines.append(httpx.Response(200, json={"item_id": name, "title": name, "vector": vector}).text)
        for start in range(0, 700, 100):
            content = "\n".join(lines[start : start + 100])
            answer = await anyo.client.post("/items", content=content, headers={"content-type": "application/x-ndjson"})
            assert answer.status_code == 200 and len(answer.json()["items"]) == 100, answer.text
        query = parts.encoder.encode([parts.encoder.prepare([5, 9])])[0]
        expected = sorted(vectors, key=lambda name: -float(vectors[name] @ query))[:100]
        answer = await anyo.recommend(history=[item_id(5), item_id(9)], k=100, exclude_seen=False)
        assert [item["item_id"] for item in answer.json()["items"]] == expected
        near = (await anyo.client.get("/items/new-7/similar", params={"k": 5})).json()["items"]
        expected = sorted(vectors, key=lambda name: -float(vectors[name] @ vectors["new-7"]))
        assert [item["item_id"] for item in near] == [name for name in expected if name != "new-7"][:5]
        assert anyo.metric("anyo_changed_items", state="live") == 400


async def test_what_is_withdrawn_while_an_answer_is_computed_is_not_in_it() -> None:
    async with running(make_parts(), user_cache_entries=0, **MEMORY) as anyo:
        history, everything = [item_id(3), item_id(4)], [item_id(row) for row in range(200)]
        asked: list[tuple[str, dict[str, Any]]] = [
            ("/recommend", {"history": [item_id(3)]}),
            ("/recommend", {"history": history, "rerank": {"artifact": "fake", "candidates": 200}}),
            ("/recommend", {"history": [item_id(5), item_id(4)], "k": 100, "explain": True}),
            ("/rank", {"history": history, "candidates": everything}),
        ]
        for place, (path, body) in enumerate(asked):
            best = (await top(anyo, history=body["history"]))[0]
            changed, written = item_id(10 + place), {"title": "Changed", "vector": [0.0] * 16}
            device = await anyo.occupy_device()
            waiting = asyncio.create_task(top(anyo, path, **body))
            await asyncio.sleep(0)
            assert (await anyo.client.delete(f"/items/{best}")).status_code == 200
            assert (await anyo.client.put(f"/items/{changed}", json=written)).status_code == 200
            anyo.encoder.gate.set()
            found = await waiting
            await device
            assert best not in found and (changed in found or len(found) == 100), (path, body)
            assert len(found) == min(body.get("k", 200), 199 - place), (path, body)


async def test_a_ranking_names_what_is_withdrawn_and_scores_new_items() -> None:
    parts = make_parts(items=20)
    async with running(parts, **MEMORY) as anyo:
        await put(anyo, "new", vector=[1.0] * 16)
        await anyo.client.patch(f"/items/{item_id(6)}", json={"state": "hidden"})
        body = {"history": [item_id(3)], "candidates": [item_id(6), "new", item_id(7)]}
        found = (await anyo.client.post("/rank", json=body)).json()
        assert found["unknown_candidates"] == [item_id(6)]
        vector_D = parts.encoder.encode([parts.encoder.prepare([3])])[0]
        score_of = {item["item_id"]: item["score"] for item in found["items"]}
        assert score_of.keys() == {"new", item_id(7)} and abs(score_of["new"] - float(vector_D.sum())) < 1e-4
        alone = await anyo.client.post("/rank", json={**body, "candidates": [item_id(6)]})
        assert (alone.status_code, alone.json()["error"]["code"]) == (422, "no_usable_candidates")


async def test_a_new_item_is_read_in_histories_and_left_out_when_seen() -> None:
    async with running(make_parts(items=60), **MEMORY) as anyo:
        await put(anyo, "new")
        by_title = await anyo.recommend(history=[{"title": NEW}], k=5)
        by_id = await anyo.recommend(history=["new"], k=6, exclude_seen=False)
        assert by_id.json()["items"][0]["item_id"] == "new"
        seen = (await anyo.recommend(history=["new"], k=5)).json()
        titled = [item["item_id"] for item in by_title.json()["items"]]  # a title leaves out the item that has it
        assert "new" not in titled and [item["item_id"] for item in seen["items"]] == titled
        await anyo.client.post("/users/u/events", json={"events": [{"item_id": "new"}, {"item_id": item_id(1)}]})
        await put(anyo, "new", categories=["other"])  # a new row of the same item
        assert "new" not in [item["item_id"] for item in (await anyo.recommend(user_id="u", k=60)).json()["items"]]


async def test_versions_guard_against_changes_of_others() -> None:
    async with running(make_parts(items=20), **MEMORY) as anyo:
        assert (await put(anyo, "new", headers={"If-None-Match": "*"}))["version"] == 1
        again = await put(anyo, "new", headers={"If-None-Match": "*"})
        assert (again["version"], again["changed"]) == (1, False), "a repetition is no change"
        await put(anyo, "new", 412, {"If-None-Match": "*"}, title="Other")
        await put(anyo, item_id(1), 412, {"If-None-Match": "*"})
        await put(anyo, "absent", 412, {"If-Match": "*"})
        late = await put(anyo, "new", 412, {"If-Match": '"7"'}, title="Late")
        assert "has version 1, and If-Match expects 7" in late["error"]["message"]
        assert (await put(anyo, "new", headers={"If-Match": '"1"'}, title="Next"))["version"] == 2
        found = await anyo.client.get("/items/new")
        assert (found.headers["etag"], found.json()["title"]) == ('"2"', "Next")
        await put(anyo, "new", 400, {"If-Match": "2"}, title="Unquoted")
        patches = await asyncio.gather(
            *(anyo.client.patch("/items/new", json={"attributes": {f"a{n}": n}}) for n in range(5))
        )
        assert {answer.status_code for answer in patches} == {200}
        assert len((await anyo.client.get("/items/new")).json()["attributes"]) == 5, "no patch undoes another"
        gone = await anyo.client.delete("/items/new")
        assert (await anyo.client.delete("/items/new")).json()["version"] == gone.json()["version"]
        assert (await anyo.client.delete("/items/never")).status_code == 404
        assert (await anyo.client.patch("/items/new", json={"title": "x"})).status_code == 404


async def test_a_model_that_reads_no_text_needs_a_vector() -> None:
    async with running(make_parts(items=20, reads_text=False), **MEMORY) as anyo:
        refused = await put(anyo, "new", 409)
        assert refused["error"]["code"] == "cannot_add_item"
        assert "give a vector of 16 numbers" in refused["error"]["message"]
        assert (await anyo.client.get("/items/new")).status_code == 404
        wrong = await put(anyo, "new", 422, vector=[1.0])
        assert "vector has 1 numbers, and those of artifact 'fake' have 16" in wrong["error"]["message"]
        await put(anyo, "new", vector=[1.0] * 16)
        assert "new" in await top(anyo, history=[item_id(3)])
        assert (await anyo.recommend(history=["new", item_id(1)])).json()["ignored_items"] == ["new"]


async def test_a_line_that_is_wrong_stores_nothing_and_is_named() -> None:
    async with running(make_parts(items=20), **MEMORY) as anyo:
        lines = '{"item_id": "a", "title": "A"}\n\n{"item_id": "b", "title": " "}\n'
        answer = await anyo.client.post("/items", content=lines, headers={"content-type": "application/x-ndjson"})
        assert answer.status_code == 422 and answer.json()["error"]["message"].startswith("line 3: title: the title is")
        assert (await anyo.client.get("/items/a")).status_code == 404


async def test_without_a_store_items_are_as_they_were_trained() -> None:
    async with running(make_parts(items=20)) as anyo:
        refused = await put(anyo, "new", 409)
        assert refused["error"]["code"] == "items_read_only" and "ANYO_ITEM_STORE" in refused["error"]["message"]


async def test_an_artifact_that_is_loaded_has_all_changes_before_it_answers(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "manifest.json").write_text("{}")

    def other(folder: Path, device: str) -> Any:
        return dataclasses.replace(make_parts(items=70, seed=11), version="v2")

    async with running(make_parts(items=60), opens=other, artifacts_root=tmp_path, **MEMORY) as anyo:
        for number in range(5):
            await put(anyo, f"new-{number}", title=f"New {number}")
        await anyo.client.patch(f"/items/{item_id(2)}", json={"state": "hidden"})
        await put(anyo, "given", vector=[9.0] * 16)  # in the space of the first: embedded again by the second
        loaded = await anyo.client.post("/artifacts/second/load")
        assert loaded.status_code == 200, loaded.text
        found = await top(anyo, history=[item_id(3)], artifact="second")
        assert {f"new-{number}" for number in range(5)} | {"given", item_id(65)} <= set(found)
        assert item_id(2) not in found
        vector_D = make_parts().embed([NEW])[0]  # type: ignore[misc]
        index: Any = anyo.service.recommender("second").items.index
        catalog = anyo.service.recommender("second").catalog
        assert (index.keys(np.array([catalog.row("given")]))[0] == vector_D).all()


async def test_replicas_on_one_store_see_each_others_changes_within_a_second(tmp_path: Path) -> None:
    store: dict[str, Any] = {"item_store": f"sqlite:///{tmp_path / 'items.sqlite'}"}
    async with running(make_parts(items=60), **store) as one, running(make_parts(items=60), **store) as two:
        await put(one, "new")
        await one.client.delete(f"/items/{item_id(7)}")
        async with asyncio.timeout(5):
            while one.service.items.records.keys() != two.service.items.records.keys():
                await asyncio.sleep(0.02)
            while item_id(7) in (found := await top(two, history=[item_id(3)])) or "new" not in found:
                await asyncio.sleep(0.02)
        await put(two, "both", title="Ties", vector=[1.0] * 16)
        await put(one, "tie", title="Ties", vector=[1.0] * 16)
        async with asyncio.timeout(5):
            while (found := await top(one, history=[item_id(3)])) != await top(two, history=[item_id(3)]):
                await asyncio.sleep(0.02)
        assert found.index("tie") == found.index("both") + 1, "equal scores are in the order of the changes"


async def test_answers_say_that_changes_of_others_cannot_be_read() -> None:
    async with running(make_parts(items=20), **MEMORY) as anyo:
        items: Any = anyo.service.items
        items._task.cancel()
        items._looked_at -= 60
        assert (await anyo.recommend(history=[item_id(3)])).json()["degraded"] == ["items"]
