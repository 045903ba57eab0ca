"""`anyo.load(folder).recommend(history)` answers as the service does, for artifacts of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from rich.console import Console

import anyo
from service.errors import StartError
from service.http.app import create_app
from service.service import Service
from service.settings import load_settings
from testing.models import backbone_folder
from tests.training.loop.test_fit import write_dataset
from training.data.dataset import read_dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

__all__ = ["backbone_folder"]  # a fixture

ITEMS, USERS = 60, 100
SHORT = ["optimizer.epochs=1", "optimizer.positions=200"]
RECIPES = {
    "sasrec": [*SHORT, "items.dim=16", "backbone.width=16"],
    "anyo": [*SHORT, "items.dim=16", "history.limit=8"],
    "item_knn": [],
    "genre": [*SHORT, "history.title_tokens=6", "history.limit=5", "method.beams=6", "method.validation_users=8"],
}
READS_TEXT = ("anyo", "genre")


@pytest.fixture(scope="module", params=RECIPES)
def artifact(
    request: pytest.FixtureRequest,
    backbone_folder: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder, name = tmp_path_factory.mktemp("api"), request.param
    data = write_dataset(folder / "ring", users=40, items=ITEMS)
    backbone = None if name in ("sasrec", "item_knn") else str(backbone_folder("qwen3"))
    run(
        get_recipe(name, RECIPES[name], backbone=backbone),
        read_dataset(data),
        RunOptions(out=folder / name),
        Console(quiet=True),
    )
    return folder / name


def questions(reads_text: bool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found = []
    for user in range(USERS):
        history: list[Any] = [f"i{row}" for row in rng.integers(0, ITEMS, int(rng.integers(1, 12)))]
        ask: dict[str, Any] = {"history": history, "k": int(rng.integers(1, 15))}
        if user % 3 == 0:
            ask["exclude"] = [f"i{row}" for row in rng.integers(0, ITEMS, 5)]
        if user % 5 == 0:
            ask["exclude_seen"] = False
        if user % 7 == 0:
            history.insert(1, "not in the catalog")
        if reads_text and user % 4 == 0:
            history.append({"title": f" new\t lamp {user}"})
        found.append(ask)
    return found


async def test_it_answers_as_the_service_does(artifact: Path) -> None:
    model = anyo.load(artifact)
    assert (model.name, model.recipe) == (artifact.name, artifact.name)
    service = Service(
        load_settings(artifacts=(artifact,), store="sqlite:///:memory:", user_cache_entries=0, max_loop_delay_ms=0)
    )
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        path = "/recommend/generative" if artifact.name == "genre" else "/recommend"
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for ask in questions(artifact.name in READS_TEXT):
                answer = await client.post(path, json=ask)
                assert answer.status_code == 200, answer.text
                served = answer.json()["items"]
                found = model.recommend(**ask)
                assert [item.item_id for item in found] == [item["item_id"] for item in served], ask
                assert [item.title for item in found] == [item["title"] for item in served]
                np.testing.assert_allclose(
                    [item.score for item in found], [item["score"] for item in served], rtol=1e-3, atol=1e-4
                )
    finally:
        await service.close()


def test_a_question_that_cannot_be_answered_is_a_value_error_with_one_sentence(artifact: Path) -> None:
    model = anyo.load(artifact)
    for given, message in [
        ({"history": []}, "history holds 0 items, and none of them is in the catalog of 60 items"),
        ({"history": ["x"]}, "history holds 1 items"),
        ({"history": ["i1"], "k": 0}, "k is 0"),
        ({"history": ["i1"], "categories": ["odd"]}, "category 'odd' is not in the catalog"),
        ({"history": [{"title": " \t"}]}, "blank"),
        ({"history": [{"name": "x"}]}, "it is an id or"),
    ]:
        with pytest.raises(ValueError, match=message):
            model.recommend(**given)  # type: ignore[arg-type]
    if artifact.name not in READS_TEXT:
        with pytest.raises(ValueError, match=r"holds a free title, and artifact .* reads ids only"):
            model.recommend([{"title": "lamp"}])


def test_a_folder_without_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"holds no manifest\.json"):
        anyo.load(tmp_path)
