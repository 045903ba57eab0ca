"""The service on a real artifact folder: a small transformer with random weights, written as training writes
it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from index import Catalog, FlatIndex, save_index
from modeling.artifact.atomic import replaced_folder
from modeling.encoder.build import build_model
from modeling.methods.dense import GoldenCase, write_golden, write_manifest, write_model
from modeling.spec import BackboneSpec, HistorySpec, ItemsSpec, ModelSpec, ProjectorSpec
from service.artifacts.loading import open_artifact
from service.errors import StartError
from service.http.app import create_app
from service.recommend.histories import window_start
from service.service import Service
from service.settings import load_settings
from testing.running import ROOT
from training.evaluation.full_ranking import encode_users

ITEMS, DIM, LIMIT = 500, 32, 20
SPEC = ModelSpec(
    history=HistorySpec(form="ids", limit=LIMIT),
    backbone=BackboneSpec(width=DIM, depth=2, heads=2),
    projector=ProjectorSpec(kind="identity"),
    items=ItemsSpec(tower="id", dim=DIM),
)


def write(folder: Path, name: str) -> Path:
    torch.manual_seed(3)
    model = build_model(SPEC, catalog_size=ITEMS)
    encoder = model.encoder.eval()
    catalog = Catalog(
        item_ids=tuple(f"B{row:05d}'\"" for row in range(ITEMS)),
        titles=tuple(f"Thing {row}" for row in range(ITEMS)),
        categories=((),) * ITEMS,
        popularity=np.arange(ITEMS, dtype=np.int64),
        popularity_counted_on="train",
    )
    histories = [list(range(start, start + length)) for start, length in ((0, 3), (40, 30), (99, 1))]
    with replaced_folder(folder / name) as work:
        vectors_ND = write_model(model, work)
        catalog.write(work / "catalog.parquet")
        index = FlatIndex.build(vectors_ND)
        save_index(index, work / "index")
        users_BD = encoder.encode([encoder.prepare(history) for history in histories])
        _, rows_BK = index.search(users_BD, 10, exclude=[np.array(history) for history in histories])
        ids = catalog.item_ids
        cases = [
            GoldenCase(history=[ids[row] for row in history], vector=user.tolist(), top=[ids[row] for row in rows])
            for history, user, rows in zip(histories, users_BD, rows_BK, strict=True)
        ]
        write_golden(work, cases)
        write_manifest(
            work, model, name=name, recipe="sasrec", recipe_data={}, data="made up", data_sha256="0",
            split="leave-one-out", fitted_on="train", metrics={}, training={}, commit=None,
        )  # fmt: skip
    return folder / name


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("artifacts"), "small")


async def test_served_answers_are_those_of_the_offline_evaluation(artifact: Path) -> None:
    """Ids and order, whatever batches the requests happen to travel in."""
    parts = open_artifact(artifact, "cpu")
    rng = np.random.default_rng(0)
    histories = [rng.integers(0, ITEMS, size=rng.integers(1, 45)) for _ in range(200)]
    users_UD = encode_users(parts.encoder, histories)
    _, expected_UK = parts.index.search(users_UD, 10, exclude=histories)

    service = Service(
        load_settings(
            artifacts=(artifact,), store="sqlite:///:memory:", user_cache_entries=0, max_loop_delay_ms=0, lanes=2
        )
    )
    await service.start()
    assert service.loading is not None
    await service.loading
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:

        async def ask(history: np.ndarray) -> list[str]:
            body = {"history": [parts.catalog.item_ids[row] for row in history]}
            answer = await client.post("/recommend", json=body)
            return [item["item_id"] for item in answer.json()["items"]]

        served = await asyncio.gather(*(ask(history) for history in histories))
    batches = service.metrics.registry.get_sample_value("anyo_batch_requests_count")
    await service.close()
    for rows, answer in zip(expected_UK, served, strict=True):
        assert answer == [parts.catalog.item_ids[row] for row in rows]
    assert batches is not None and batches < len(histories), "they did travel together"


async def test_users_who_come_back_get_the_answers_of_reading_everything_again(artifact: Path) -> None:
    """With `ANYO_REUSE_MIB` a history that grew is read from where it grew; the list is the same."""
    parts = open_artifact(artifact, "cpu")
    rng = np.random.default_rng(0)
    users = [rng.integers(0, ITEMS, size=rng.integers(1, 30)).tolist() for _ in range(12)]
    service = Service(
        load_settings(artifacts=(artifact,), store="sqlite:///:memory:", user_cache_entries=0, reuse_mib=8, lanes=2)
    )
    await service.start()
    assert service.loading is not None
    await service.loading
    labels = {"cache": "states", "result": "hit"}
    before = service.metrics.registry.get_sample_value("anyo_cache_requests_total", labels)
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        for _ in range(3):
            bodies = [{"history": [parts.catalog.item_ids[row] for row in history]} for history in users]
            answers = await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies))
            _, expected_UK = parts.index.search(
                encode_users(parts.encoder, [np.array(history) for history in users]), 10,
                exclude=[np.array(history) for history in users],
            )  # fmt: skip
            for rows, answer in zip(expected_UK, answers, strict=True):
                assert [item["item_id"] for item in answer.json()["items"]] == [parts.catalog.item_ids[r] for r in rows]
            for history in users:
                history.append(int(rng.integers(0, ITEMS)))
    hits = service.metrics.registry.get_sample_value("anyo_cache_requests_total", labels)
    await service.close()
    assert before == 0 and hits is not None and hits >= 12, "those whose window did not move were continued"


async def test_a_window_that_moves_in_blocks_is_read_again_once_a_block(artifact: Path) -> None:
    parts = open_artifact(artifact, "cpu")
    limit, block, events = parts.encoder.history_limit, 4, 12
    rng = np.random.default_rng(1)
    history = rng.integers(0, ITEMS, size=limit).tolist()
    service = Service(
        load_settings(
            artifacts=(artifact,), store="sqlite:///:memory:", user_cache_entries=0, reuse_mib=64, reuse_block=block
        )
    )
    await service.start()
    assert service.loading is not None
    await service.loading

    def misses() -> float:
        labels = {"cache": "states", "result": "miss"}
        return service.metrics.registry.get_sample_value("anyo_cache_requests_total", labels) or 0.0

    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        before = misses()
        for _ in range(events):
            history.append(int(rng.integers(0, ITEMS)))
            body = {"history": [parts.catalog.item_ids[row] for row in history]}
            answer = await client.post("/recommend", json=body)
            read = history[window_start(len(history), limit, block) :]
            assert limit - block < len(read) <= limit
            seen = [np.array(history)]
            (rows,) = parts.index.search(encode_users(parts.encoder, [np.array(read)]), 10, exclude=seen)[1]
            assert [item["item_id"] for item in answer.json()["items"]] == [parts.catalog.item_ids[r] for r in rows]
        again = misses() - before
    await service.close()
    assert again == events / block


@pytest.mark.parametrize("name", ["catalog.parquet", "index/index.faiss", "golden.json", "projector.safetensors"])
def test_an_altered_artifact_is_refused_in_one_sentence(artifact: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(artifact, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(StartError, match=re.escape(name)) as refused:
        open_artifact(folder, "cpu")
    assert "\n" not in str(refused.value)


def test_a_device_that_is_not_there_is_refused_in_one_sentence(artifact: Path) -> None:
    if torch.cuda.is_available():
        device = f"cuda:{torch.cuda.device_count()}"
    else:
        device = "cuda"
    with pytest.raises(StartError, match=f"cannot run on device '{device}'") as refused:
        open_artifact(artifact, device)
    assert "\n" not in str(refused.value)


@pytest.fixture
def served(artifact: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "service", str(artifact), "--port", "0", "--store", f"sqlite:///{tmp_path}/h.sqlite"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_the_curl_line_it_prints_works_as_printed(served: subprocess.Popen[str]) -> None:
    assert served.stdout is not None
    curl = next(line for line in served.stdout if line.startswith("curl "))
    assert "'\"'\"'" in curl, "ids with quotes are quoted for the shell"
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True, timeout=30)
    body = json.loads(answer.stdout)
    assert len(body["items"]) == 5 and body["source"] == "model" and body["artifact"]["name"] == "small"
    served.send_signal(signal.SIGINT)
    _, log = served.communicate(timeout=30)
    assert served.returncode == 0
    for line in log.splitlines():
        assert {"event", "level", "timestamp"} <= set(json.loads(line)), line
