"""Generative artifacts are loaded, checked, exchanged and refused while requests run."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.artifacts.loading import AnyLoaded, LoadedGenerative
from service.artifacts.memory import SharedBlock
from service.errors import StartError
from service.http.app import create_app
from service.service import Service
from service.settings import load_settings
from testing.fake_parts import item_id, make_parts
from testing.fake_writer import make_generative_parts
from testing.running import Running, running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("writer", "other", "wrong", "becomes-dense"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path


class ArtifactView:
    """Makes generative parts for folders, each time another version."""

    def __init__(self) -> None:
        self.versions = 0

    def __call__(self, folder: Path, device: str) -> AnyLoaded:
        self.versions += 1
        if folder.name == "becomes-dense" and self.versions > 1:
            return make_parts()
        parts = make_generative_parts(make_parts(seed=50 + self.versions))
        if folder.name == "wrong":
            parts = altered(parts, texts=["A text that nobody wrote"])
        pieces = (SharedBlock("weights", None, 1000),)
        recipe = "other-writing" if folder.name == "other" else parts.recipe
        return dataclasses.replace(parts, version=f"v{self.versions}", recipe=recipe, pieces=pieces)


def altered(parts: LoadedGenerative, **change: Any) -> LoadedGenerative:
    first, *rest = parts.golden
    return dataclasses.replace(parts, golden=(first.model_copy(update=change), *rest))


async def post(anyo: Running, path: str, status: int = 200) -> Any:
    answer = await anyo.client.post(path)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"texts": ["A text that nobody wrote"]}, "is answered with the texts"),
        ({"top": [item_id(0), item_id(1)]}, "the catalog is another one"),
    ],
)
async def test_golden_texts_and_items_are_checked_before_readiness(change: Any, says: str) -> None:
    with pytest.raises(StartError, match=says):
        async with running(generative=altered(make_generative_parts(), **change)):
            pass


async def test_with_fewer_bits_most_of_the_golden_texts_must_be_found() -> None:
    """One history that is answered otherwise is rounding; all of them are another model."""
    parts = dataclasses.replace(make_generative_parts(), precision="bf16")
    changed: dict[str, Any] = {"texts": ["A text that nobody wrote"], "top": [item_id(0), item_id(1)]}
    async with running(generative=altered(parts, **changed)) as anyo:
        assert (await anyo.write(history=[item_id(1)])).status_code == 200
    others = dataclasses.replace(parts, golden=tuple(case.model_copy(update=changed) for case in parts.golden))
    with pytest.raises(StartError, match="in bf16 0 of the 5 texts stored are found, and at least 50% are needed"):
        async with running(generative=others):
            pass


async def test_an_artifact_without_golden_histories_is_refused() -> None:
    with pytest.raises(StartError, match="holds no history to check"):
        async with running(generative=dataclasses.replace(make_generative_parts(), golden=())):
            pass


async def test_the_first_of_a_kind_is_its_default_and_each_kind_has_its_own(root: Path) -> None:
    async with running(opens=ArtifactView(), artifacts_root=root) as anyo:
        assert (await anyo.write(history=[item_id(1)])).status_code == 404
        await post(anyo, "/artifacts/writer/load")
        await post(anyo, "/artifacts/other/load")

        async def answered_by(**body: Any) -> str:
            return str((await anyo.write(history=[item_id(1)], **body)).json()["artifact"]["name"])

        assert await answered_by() == "writer"
        assert await answered_by(recipe="other-writing") == "other", "another artifact has this recipe"
        assert await answered_by(artifact="other") == "other"
        assert (await post(anyo, "/artifacts/other/activate"))["previous"] == "writer"
        assert await answered_by() == "other"
        dense = (await anyo.recommend(history=[item_id(1)])).json()
        assert dense["artifact"]["name"] == "fake", "the default dense artifact is another thing"
        in_use = await post(anyo, "/artifacts/other/unload", 409)
        assert "the default generative one" in in_use["error"]["message"]
        assert (await post(anyo, "/artifacts/writer/unload"))["freed_bytes"] == 1000
        await post(anyo, "/artifacts/other/unload")
        assert (await anyo.write(history=[item_id(1)])).json()["error"]["code"] == "no_generative_artifact"
        await post(anyo, "/artifacts/writer/load")
        assert await answered_by() == "writer"


async def test_a_refused_artifact_changes_nothing(root: Path) -> None:
    async with running(opens=ArtifactView(), artifacts_root=root, max_artifact_bytes=1500) as anyo:
        refused = await post(anyo, "/artifacts/wrong/load", 409)
        assert refused["error"]["code"] == "artifact_refused" and "nothing was changed" in refused["error"]["message"]
        await post(anyo, "/artifacts/writer/load")
        assert (await post(anyo, "/artifacts/other/load", 409))["error"]["code"] == "no_room"
        assert [row["name"] for row in (await anyo.client.get("/artifacts")).json()["items"]] == ["fake", "writer"]


async def test_a_folder_that_changes_its_kind_is_refused(root: Path) -> None:
    async with running(opens=ArtifactView(), artifacts_root=root) as anyo:
        await post(anyo, "/artifacts/becomes-dense/load")
        refused = await post(anyo, "/artifacts/becomes-dense/load", 409)
        assert "loaded as a generative one" in refused["error"]["message"]
        assert (await anyo.write(history=[item_id(1)])).status_code == 200


async def test_a_new_version_takes_over_while_the_old_one_finishes_its_texts(root: Path) -> None:
    async with running(opens=ArtifactView(), artifacts_root=root) as anyo:
        await post(anyo, "/artifacts/writer/load")
        old: Any = anyo.service.generative(None, None).parts.model
        old.step_s = 0.05
        steps = old.steps
        writing = asyncio.create_task(anyo.write(history=[item_id(1)]))
        while old.steps == steps:
            await asyncio.sleep(0.005)
        swap = asyncio.create_task(anyo.client.post("/artifacts/writer/load"))
        assert (await writing).json()["artifact"]["version"] == "v1"
        assert (await swap).json()["version"] == "v2"
        assert (await anyo.write(history=[item_id(1)])).json()["artifact"]["version"] == "v2"


@contextlib.asynccontextmanager
async def running_only(parts: LoadedGenerative) -> AsyncIterator[httpx.AsyncClient]:
    """A service with nothing but a generative artifact."""
    settings = load_settings(artifacts=(Path(parts.name),), store="sqlite:///:memory:")
    service = Service(settings, open_artifact=lambda folder, device: parts)
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            yield client
    finally:
        await service.close()


async def test_a_service_without_a_dense_artifact_answers_what_it_can() -> None:
    async with running_only(make_generative_parts()) as client:
        answer = await client.post("/recommend/generative", json={"history": [item_id(3)]})
        assert answer.status_code == 200
        refused = await client.post("/recommend", json={"history": [item_id(3)]})
        assert refused.status_code == 409 and "no dense artifact" in refused.json()["error"]["message"]
        assert [row["default"] for row in (await client.get("/artifacts")).json()["items"]] == [True]
        for path in ("/items", f"/items/{item_id(3)}", "/feedback/summary", "/readyz", "/users"):
            assert (await client.get(path)).status_code == 200, path
        traffic = await client.get("/traffic")
        assert traffic.status_code == 409
