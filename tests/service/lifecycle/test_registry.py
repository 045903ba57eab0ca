"""Artifacts are loaded, swapped and unloaded while requests run; nothing is lost, and memory comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from service.artifacts.loading import LoadedArtifact
from service.artifacts.memory import SharedBlock
from service.errors import StartError
from service.service import Service
from service.settings import load_settings
from testing.fake_parts import item_id, make_parts
from testing.running import Running, running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the artifacts `second`, `third` and `broken`, as far as a name is looked up in it."""
    for name in ("second", "third", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


class ArtifactView:
    """Makes parts for folders, each time another version; can be told to wait."""

    def __init__(self, **sizes: int) -> None:
        self.versions = 0
        self.sizes = sizes
        self.gate = threading.Event()
        self.gate.set()
        self.made: list[weakref.ref[Any]] = []

    def __call__(self, folder: Path, device: str) -> LoadedArtifact:
        self.gate.wait(30)
        self.versions += 1
        parts = make_parts(seed=100 + self.versions)
        self.made.append(weakref.ref(parts.encoder))
        if folder.name == "broken":
            raise StartError(f"golden.json of {folder.parent}/{folder.name} is answered otherwise")
        pieces = (SharedBlock("weights", None, self.sizes.get(folder.name, 0)),)
        return dataclasses.replace(parts, version=f"v{self.versions}", pieces=pieces)


async def post(anyo: Running, path: str, status: int = 200) -> Any:
    answer = await anyo.client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


async def answered_by(anyo: Running, name: str | None = None) -> str:
    answer = await anyo.recommend(history=[item_id(1)], artifact=name)
    return f"{answer.json()['artifact']['name']} {answer.json()['artifact']['version']}"


async def test_load_activate_unload(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root) as anyo:
        loaded = await post(anyo, "/artifacts/second/load")
        assert (loaded["name"], loaded["version"], loaded["changed"]) == ("second", "v1", True)
        assert await answered_by(anyo, "second") == "second v1"
        assert await answered_by(anyo) == "fake 0123456789ab", "loading changes nothing for requests that name none"
        rows = (await anyo.client.get("/artifacts")).json()["items"]
        assert [(row["name"], row["default"], row["state"]) for row in rows] == [
            ("fake", True, "active"), ("second", False, "standby"),
        ]  # fmt: skip
        assert (await post(anyo, "/artifacts/second/activate"))["previous"] == "fake"
        assert await answered_by(anyo) == "second v1"
        assert [row["name"] for row in (await anyo.client.get("/artifacts")).json()["items"]] == ["second", "fake"]
        in_use = await post(anyo, "/artifacts/second/unload", 409)
        assert in_use["error"]["code"] == "in_use" and "activate another" in in_use["error"]["message"]
        await post(anyo, "/artifacts/fake/unload")
        assert (await anyo.recommend(history=[item_id(1)], artifact="fake")).status_code == 404
        assert anyo.metric("anyo_artifact_info", name="second", version="v1", recipe="fake-recipe") == 1
        page = (await anyo.client.get("/metrics")).text
        assert 'anyo_artifact_info{name="fake"' not in page, "what is unloaded is not shown"
        defaults = [line for line in page.splitlines() if line.startswith("anyo_default_artifact_info{")]
        assert defaults == ['anyo_default_artifact_info{kind="dense",name="second",version="v1"} 1.0']


async def test_a_new_version_takes_the_place_of_the_old_while_its_requests_end_on_it(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root) as anyo:
        await post(anyo, "/artifacts/second/load")
        await post(anyo, "/artifacts/second/activate")
        old: Any = anyo.service.recommender("second").parts.encoder
        old.gate.clear()
        running_on_old = asyncio.create_task(anyo.recommend(history=[item_id(1), item_id(2)]))
        while not anyo.service.recommender("second")._in_flight:
            await asyncio.sleep(0.005)
        swap = asyncio.create_task(anyo.client.post("/artifacts/second/load"))
        while await answered_by(anyo, "fake") and anyo.service.recommender("second").parts.version == "v1":
            await asyncio.sleep(0.005)
        assert await answered_by(anyo) == "second v2", "new requests do not wait for old ones"
        assert not running_on_old.done() and not swap.done()
        old.gate.set()
        assert (await running_on_old).json()["artifact"]["version"] == "v1"
        assert (await swap).json()["version"] == "v2"
        del old
        assert shelf.made[0]() is None, "the old model is gone from memory"


async def test_a_request_that_still_reads_its_history_ends_on_the_artifact_it_began_with(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root, user_cache_entries=0) as anyo:
        await post(anyo, "/artifacts/second/load")
        slow = asyncio.Event()
        read = anyo.service._inner_store.history

        async def history(user_id: str) -> Any:
            await slow.wait()
            return await read(user_id)

        anyo.service._inner_store.history = history  # type: ignore[method-assign]
        body = {"history": [item_id(1)], "user_id": "anna", "artifact": "second"}
        asked = asyncio.create_task(anyo.recommend(**body))
        await asyncio.sleep(0.02)
        swap = asyncio.create_task(anyo.client.post("/artifacts/second/load"))
        while anyo.service.recommender("second").parts.version == "v1":
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        slow.set()
        answer = await asked
        assert answer.status_code == 200 and answer.json()["artifact"]["version"] == "v1"
        assert (await swap).status_code == 200


async def test_swaps_under_load_fail_no_request_and_keep_no_memory(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root) as anyo:
        await post(anyo, "/artifacts/second/load")
        await post(anyo, "/artifacts/second/activate")
        statuses: list[int] = []
        ended = False

        async def client(number: int) -> None:
            while not ended:
                answer = await anyo.recommend(history=[item_id((number * 31 + len(statuses)) % 200)])
                statuses.append(answer.status_code)

        clients = [asyncio.create_task(client(number)) for number in range(6)]
        try:
            for _ in range(8):
                assert (await post(anyo, "/artifacts/second/load"))["changed"]
        finally:
            ended = True
            await asyncio.gather(*clients)
        assert len(statuses) > 20 and set(statuses) == {200}
        assert sum(made() is not None for made in shelf.made) == 1
        threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("anyo-device")]
        assert len(threads) == 2, "the default and the newest; the threads of the others ended"


async def test_a_load_that_is_refused_changes_nothing_and_says_why(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root) as anyo:
        refused = (await post(anyo, "/artifacts/broken/load", 409))["error"]
        assert refused["code"] == "artifact_refused"
        assert "golden.json of broken" in refused["message"] and "nothing was changed" in refused["message"]
        assert str(root) not in refused["message"], "where folders lie on the server is not for clients"
        assert list(anyo.service.recommenders) == ["fake"] and await answered_by(anyo)
        assert anyo.service.registry.operation is None
        for _ in range(100):  # a thread that has just ended may still hold its last task
            if shelf.made[0]() is None:
                break
            await asyncio.sleep(0.01)
            gc.collect()
        assert shelf.made[0]() is None


async def test_only_plain_names_inside_the_root_are_loaded(root: Path) -> None:
    async with running(opens=ArtifactView(), artifacts_root=root / "second") as anyo:
        for name, status in {"third": 404, "..": 404, "%2e%2e%2fthird": 422, ".hidden": 422, "a b": 422}.items():
            answer = await anyo.client.post(f"/artifacts/{name}/load")
            assert answer.status_code == status, name
        assert list(anyo.service.recommenders) == ["fake"]
    async with running(opens=ArtifactView()) as anyo:
        none = await post(anyo, "/artifacts/second/load", 404)
        assert "ANYO_ARTIFACTS_ROOT is not set" in none["error"]["message"]
        assert (await post(anyo, "/artifacts/fake/load"))["changed"], "what was named at the start can be loaded anew"


async def test_one_operation_at_a_time_and_artifacts_says_which(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root) as anyo:
        shelf.gate.clear()
        first = asyncio.create_task(anyo.client.post("/artifacts/second/load"))
        while anyo.service.registry.operation is None:
            await asyncio.sleep(0.005)
        busy = await anyo.client.post("/artifacts/third/load")
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "busy") and busy.headers["retry-after"]
        working = (await anyo.client.get("/artifacts")).json()["working"]
        assert working["name"] == "second" and "loading" in working["step"]
        shelf.gate.set()
        assert (await first).status_code == 200
        assert (await anyo.client.get("/artifacts")).json()["working"] is None


async def test_a_load_beyond_the_byte_budget_is_refused_with_the_sums(root: Path) -> None:
    shelf = ArtifactView(second=600, third=500)
    async with running(opens=shelf, artifacts_root=root, max_artifact_bytes=1000) as anyo:
        assert (await post(anyo, "/artifacts/second/load"))["bytes"] == 600
        refused = (await post(anyo, "/artifacts/third/load", 409))["error"]["message"]
        assert all(part in refused for part in ("needs 500 bytes", "600 that are loaded", "1100 in all", "is 1000"))
        assert anyo.metric("anyo_artifact_bytes") == 600 and anyo.metric("anyo_artifact_bytes_limit") == 1000
        assert (await post(anyo, "/artifacts/second/unload"))["freed_bytes"] == 600
        assert (await post(anyo, "/artifacts/third/load"))["bytes"] == 500
    settings = load_settings(artifacts=(root / "second",), store="sqlite:///:memory:", max_artifact_bytes=10)
    service = Service(settings, open_artifact=ArtifactView(second=600))
    await service.start()
    assert service.loading is not None
    with pytest.raises(StartError, match="needs 600 bytes"):
        await service.loading
    await service.close()


async def test_what_artifacts_share_is_counted_once(root: Path) -> None:
    catalog = SharedBlock("catalog", None, 1000)

    def opens(folder: Path, device: str) -> LoadedArtifact:
        weights = SharedBlock("weights", None, {"second": 300, "third": 200}[folder.name])
        return dataclasses.replace(make_parts(), pieces=(catalog, weights))

    async with running(opens=opens, artifacts_root=root) as anyo:
        await post(anyo, "/artifacts/second/load")
        assert (await post(anyo, "/artifacts/third/load"))["bytes"] == 1500
        rows = {row["name"]: row for row in (await anyo.client.get("/artifacts")).json()["items"]}
        assert (rows["third"]["bytes"], rows["third"]["own_bytes"]) == (1200, 200)
        assert rows["third"]["shares"] == [{"part": "catalog", "bytes": 1000, "artifacts": ["second"]}]
        assert (await post(anyo, "/artifacts/third/unload"))["freed_bytes"] == 200


async def test_shutting_down_during_a_load_ends_it(root: Path) -> None:
    shelf = ArtifactView()
    async with running(opens=shelf, artifacts_root=root) as anyo:
        shelf.gate.clear()
        loading = asyncio.create_task(anyo.client.post("/artifacts/second/load"))
        while anyo.service.registry.operation is None:
            await asyncio.sleep(0.005)
        await anyo.service.drain(0.1)
        shelf.gate.set()
        answer = await loading
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_nothing_is_loaded_or_unloaded_between_two_artifacts_of_the_start(root: Path) -> None:
    """It would take the turn of the next one, whose start would then end the process."""
    async with running(opens=ArtifactView(), artifacts_root=root) as anyo:
        anyo.service.loading = asyncio.get_running_loop().create_future()  # type: ignore[assignment]
        for step in ("load", "unload"):
            refused = await post(anyo, f"/artifacts/second/{step}", 503)
            assert refused["error"]["code"] == "not_ready"
        assert anyo.service.registry.operation is None
        anyo.service.loading.set_result(None)  # type: ignore[attr-defined]
        await post(anyo, "/artifacts/second/load")
