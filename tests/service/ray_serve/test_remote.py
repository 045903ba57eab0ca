"""The service with an encoder and an index elsewhere answers as one process does, also while replicas die.

Ray itself is not needed: replicas are objects of this process that lose calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from index import open_index
from index.sharded import IndexShard, ShardAnswer, ShardCall
from modeling.encoder.prompt import Prompt
from service.artifacts.loading import LoadedArtifact, open_artifact
from service.errors import StartError
from service.http.app import create_app
from service.ray_serve.calls import Calls
from service.ray_serve.encoder import positions_of
from service.ray_serve.remote import EncoderFacts, Sender, open_remote
from service.ray_serve.scaling import POSITIONS, PositionsPolicy, replicas_for, scaling_options
from service.service import Service
from service.settings import load_settings
from testing.artifacts import write_id_artifact

SHARDS = 3
SENDER = Sender("test", lambda: 0)


class Gone(Exception):
    """A replica died with this call."""


class Losing:
    """Replicas whose every third call is lost."""

    def __init__(self, folder: Path) -> None:
        parts = open_artifact(folder, "cpu")
        assert isinstance(parts, LoadedArtifact)
        self.parts, self.version = parts, parts.version
        index = open_index(folder / "index")
        self.shards = [IndexShard.of(index, number, SHARDS) for number in range(SHARDS)]
        self.calls = self.lost = 0
        self.told: list[int] = []

    def _perhaps_lose(self) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            self.lost += 1
            raise Gone

    async def encode(self, prompts: Sequence[Prompt], sender: str, positions: int) -> np.ndarray:
        self._perhaps_lose()
        self.told.append(positions)
        return self.parts.encoder.encode(prompts)

    async def facts(self) -> EncoderFacts:
        return EncoderFacts(self.version, "fp32")

    async def ask(self, shard: int, call: ShardCall) -> ShardAnswer:
        self._perhaps_lose()
        return self.shards[shard].answer(call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_id_artifact(tmp_path_factory.mktemp("remote"), "tiny")


@pytest.fixture
def calls():
    made = Calls(lambda error: isinstance(error, Gone), patience_s=20, attempt_s=10)
    yield made
    made.close()


async def answers(service: Service, bodies: list[dict]) -> list[dict]:
    await service.start()
    assert service.loading is not None
    await service.loading
    transport = httpx.ASGITransport(create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        found = [await client.post("/recommend", json=body) for body in bodies]
    await service.close()
    assert [answer.status_code for answer in found] == [200] * len(bodies)
    return [answer.json()["items"] for answer in found]


async def test_remote_parts_answer_as_one_process_and_lost_calls_fail_no_request(
    folder: Path, calls: Calls, tmp_path: Path
) -> None:
    replicas = Losing(folder)
    ids = replicas.parts.catalog.item_ids
    bodies = [
        {"history": [ids[row], ids[(7 * row) % 500]], "k": 20, "exclude": [ids[row + 1]]} for row in range(3, 60, 5)
    ]
    bodies.append({"history": [ids[9]], "k": 20, "diversity": {"mmr": 0.5}})
    settings = load_settings(artifacts=(folder,), user_cache_entries=0, store=f"sqlite:///{tmp_path}/users.sqlite")
    expected = await answers(Service(settings), bodies)
    remote = Service(
        settings, open_artifact=lambda folder, device: open_remote(folder, replicas, SHARDS, calls, SENDER)
    )
    found = await answers(remote, bodies)
    assert [[item["item_id"] for item in each] for each in found] == [
        [item["item_id"] for item in each] for each in expected
    ]
    np.testing.assert_allclose(
        [item["score"] for each in found for item in each],
        [item["score"] for each in expected for item in each],
        rtol=1e-5,
    )
    assert replicas.lost > len(bodies) and calls.retries == replicas.lost
    assert max(replicas.told) > 0


def test_replicas_of_another_version_are_refused(folder: Path, calls: Calls) -> None:
    replicas = Losing(folder)
    replicas.version = "other"
    with pytest.raises(StartError, match="its replicas have other"):
        open_remote(folder, replicas, SHARDS, calls, SENDER)


def test_what_is_no_loss_is_raised_at_once_and_patience_ends() -> None:
    calls = Calls(lambda error: isinstance(error, Gone), patience_s=0.2, attempt_s=1)

    async def raises(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError):
        calls.one(lambda: raises(KeyError("a mistake of the request")))
    assert calls.retries == 0
    with pytest.raises(Gone):
        calls.all({"dead": lambda: raises(Gone())})
    assert calls.retries > 1
    calls.close()


@pytest.mark.parametrize(("positions", "replicas"), [(0, 1), (1280, 1), (1281, 2), (12_800, 10)])
def test_replicas_follow_the_positions_that_wait(positions: int, replicas: int) -> None:
    assert replicas_for(positions, 1280) == replicas
    reported = {"replica 1": float(positions), "replica 2": positions / 2}  # one of them was not told by all ingresses
    context = SimpleNamespace(aggregated_metrics={POSITIONS: reported})
    assert PositionsPolicy(per_replica=1280.0)(context) == (replicas, {})


def test_without_a_report_one_replica_is_wanted_and_senders_that_are_gone_count_nothing() -> None:
    policy = PositionsPolicy(per_replica=100.0)
    assert [policy(SimpleNamespace(aggregated_metrics=each))[0] for each in (None, {}, {POSITIONS: {}})] == [1, 1, 1]
    assert positions_of({"here": (300, 99.0), "also here": (50, 99.5), "gone": (4000, 0.0)}, 100.0) == 350


@pytest.mark.parametrize(("grow_s", "mean_over_s"), [(0.0, 5.0), (12.0, 12.0), (300.0, 30.0)])
def test_the_number_of_replicas_changes_as_late_as_is_said(grow_s: float, mean_over_s: float) -> None:
    assert scaling_options(2, 6, grow_s, 600.0) == {
        "min_replicas": 2, "max_replicas": 6, "upscale_delay_s": grow_s, "downscale_delay_s": 600.0,
        "look_back_period_s": mean_over_s,
    }  # fmt: skip
