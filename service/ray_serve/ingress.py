"""A replica that takes HTTP requests: the whole service of one process, but for the encoder and the index."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.exceptions
import structlog
from numpy.typing import NDArray
from ray import serve
from ray.serve.exceptions import ReplicaUnavailableError

from index.sharded import ShardAnswer, ShardCall
from modeling.encoder.prompt import Prompt
from service.artifacts.loading import AnyLoaded
from service.errors import AnyoError
from service.http.app import create_app
from service.http.server import SWITCH_INTERVAL_S
from service.observability.logs import configure_logging
from service.ray_serve.calls import Calls
from service.ray_serve.remote import Backend, EncoderFacts, Sender, open_remote
from service.service import Service
from service.settings import Settings, load_settings

log = structlog.get_logger(__name__)

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.ObjectLostError,
    ReplicaUnavailableError,
)
NAME = "artifact"
"""What the artifact is called in answers: that which takes its place later is called the same."""
PATIENCE_S, ATTEMPT_S = 60.0, 20.0
DRAIN_S = 10.0


class ServedReplicas:
    """The deployments of one version of an artifact, an application of Ray Serve; see `service.ray_serve.remote`."""

    def __init__(self, backend: Backend) -> None:
        self._encoder = serve.get_deployment_handle("encoder", backend.application)
        self._shards = [
            serve.get_deployment_handle(f"shard-{number}", backend.application) for number in range(backend.shards)
        ]

    async def encode(self, prompts: Sequence[Prompt], sender: str, positions: int) -> NDArray[np.float32]:
        """User vectors [B, D]."""
        found: NDArray[np.float32] = await self._encoder.encode.remote(prompts, sender, positions)
        return found

    async def facts(self) -> EncoderFacts:
        """Of the encoder."""
        found: EncoderFacts = await self._encoder.facts.remote()
        return found

    def ask(self, shard: int, call: ShardCall) -> Awaitable[ShardAnswer]:
        """The answer of one shard."""
        answer: Awaitable[ShardAnswer] = self._shards[shard].answer.remote(call)
        return answer


class IngressReplica:
    """Answers as `python -m service` does, by the same code.

    Args:
        lanes: batches that may be on their way to replicas at the same time.
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._sender = uuid.uuid4().hex
        self._calls = Calls(lambda error: isinstance(error, LOST), PATIENCE_S, ATTEMPT_S)
        self._service: Service | None = None
        self._app: Any = None
        self._backend: Backend | None = None
        self._refused: str | None = None
        self._following: asyncio.Task[None] | None = None

    async def __serve_build_asgi_app__(self) -> Any:
        """Give Ray Serve what it hands requests to: a function, since uvicorn takes a method for an older protocol."""

        async def application(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
            else:
                await self._app(scope, receive, _without_request_id(send))

        return application

    async def reconfigure(self, wanted: dict[str, Any]) -> None:
        """Serve a `Backend`, given as its fields; Ray Serve calls it at the start and when the deployment is told
        another. Later ones are loaded beside what serves, in the background, one after the other."""
        backend = Backend(**wanted)
        if self._service is None:
            await self._begin(backend)
        else:
            before, self._refused = self._following, None
            self._following = asyncio.create_task(self._follow(self._service, backend, before))

    async def serving(self) -> tuple[str | None, str | None]:
        """Return the version that answers, None while one takes the place of another, and why the wanted one was
        refused where it was."""
        if self._service is None or (self._following is not None and not self._following.done()):
            return None, None
        return self._service.loaded().parts.version, self._refused

    async def settled(self) -> tuple[int, dict[str, Any]]:
        """Return the lanes and the backend that answers, once no other is on its way."""
        if self._following is not None:
            await asyncio.wait([self._following])
        assert self._backend is not None
        return self._lanes, asdict(self._backend)

    async def check_health(self) -> None:
        """Raise where only a restart can mend; Ray Serve then starts another replica."""
        if self._service is not None and (trouble := self._service.broken()) is not None:
            raise RuntimeError(trouble)

    async def _begin(self, backend: Backend) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        settings = load_settings(
            artifacts=(Path(f"{NAME}={backend.folder}"),), device="cpu", precision="fp32", lanes=self._lanes
        )
        configure_logging(settings.log_level, settings.log_format)
        self._backend = backend
        service = Service(settings, open_artifact=partial(self._open, settings))
        await service.start()
        assert service.loading is not None
        await service.loading
        self._app, self._service = create_app(service), service

    async def _follow(self, service: Service, backend: Backend, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        served, self._backend = self._backend, backend
        try:
            await service.registry.load(NAME, Path(backend.folder))
        except AnyoError as error:
            self._backend, self._refused = served, error.message
            log.error("an artifact is not taken; the one before goes on serving", error=error.message)

    def _open(self, settings: Settings, folder: Path, device: str) -> AnyLoaded:
        assert self._backend is not None
        replicas = ServedReplicas(self._backend)
        sender = Sender(self._sender, self._waiting)
        return open_remote(
            *(folder, replicas, self._backend.shards, self._calls, sender),
            download=settings.allow_downloads,
            map_index=settings.map_index,
        )

    def _waiting(self) -> int:
        if self._service is None:
            return 0
        return sum(each.engine.load()[1] for each in list(self._service.recommenders.values()))

    async def __del__(self) -> None:
        if self._service is not None:
            await self._service.drain(DRAIN_S)
            await self._service.close()
        self._calls.close()


def _without_request_id(send: Any) -> Any:
    """Leave the header X-Request-ID to Ray's proxy, which adds it to every answer: it would stand there twice."""

    async def sent(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [each for each in message["headers"] if each[0] != b"x-request-id"]
            message = {**message, "headers": headers}
        await send(message)

    return sent


async def _lifespan(receive: Any, send: Any) -> None:
    """Say that everything is ready: the service is started and ended with its replica."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
