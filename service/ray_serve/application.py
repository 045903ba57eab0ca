"""The deployments that make up the service on Ray Serve, and how one version of an artifact follows another.

The front is one application: ingress replicas. Every version of an artifact is an application of its own, with the
encoder and a deployment for each shard. A new version is started beside the old one; each ingress loads it as a hot
load does, with its golden answers computed by the new replicas, and only then the old application is deleted.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from index.storage import ENTRY_FILE
from modeling.artifact.manifest import ArtifactError, read_manifest
from service.ray_serve.encoder import EncoderReplica
from service.ray_serve.ingress import IngressReplica
from service.ray_serve.remote import PREFIX, Backend, DeployError
from service.ray_serve.scaling import PositionsPolicy, scaling_options
from service.ray_serve.shard import ShardReplica

FRONT = "anyo"
INGRESS, ENCODER = "ingress", "encoder"
MOST_REQUESTS = 10_000  # at an ingress: its own queue refuses much earlier, and says when to come back
SMALL = 0.1  # of a core: what ingresses and shards reserve of their machine
UPDATE_S = 900.0


@dataclass(frozen=True)
class Layout:
    """How many replicas there are of what.

    Attributes:
        ingresses: replicas that take requests.
        encoders, most_encoders: least and most replicas that encode.
        positions: waiting and under way, that one of them is for.
        grow_s, shrink_s: how long more, or fewer, must be needed before the number changes.
        shards: of the index.
        copies: replicas of each shard.
        threads: of a forward pass; a replica that encodes reserves as many cores.
        gpus: that a replica that encodes reserves.
    """

    ingresses: int = 1
    encoders: int = 2
    most_encoders: int = 2
    positions: int = 1280
    shards: int = 4
    copies: int = 2
    threads: int = 1
    gpus: int = 0
    grow_s: float = 30.0
    shrink_s: float = 600.0

    @property
    def cores(self) -> int:
        """Cores that all replicas reserve while one artifact takes the place of another, and a few more."""
        small = self.ingresses + 2 * self.shards * self.copies
        return 2 * self.most_encoders * self.threads + math.ceil(SMALL * small) + 2

    @property
    def lanes(self) -> int:
        """Batches of one ingress that are on their way to encoders at the same time. More would be smaller, and each
        costs a call to every shard."""
        return self.most_encoders

    def backend(self, folder: Path) -> tuple[Backend, serve.Application]:
        """Return the application that serves the artifact in ``folder``, and where it is; raises `ArtifactError`."""
        manifest = read_manifest(folder)
        entry = manifest.files.get(f"index/{ENTRY_FILE}")
        if entry is None:
            raise ArtifactError(
                f"artifact {folder.name} (recipe {manifest.recipe}) has no item vectors to divide among shards; serve "
                "it with `python -m service`"
            )
        place = str(folder.absolute())
        shards = [
            serve.deployment(ShardReplica, name=f"shard-{number}")
            .options(
                num_replicas=self.copies,
                max_ongoing_requests=16,
                ray_actor_options={"num_cpus": SMALL},
                graceful_shutdown_wait_loop_s=0.5,
            )
            .bind(place, entry, number, self.shards)
            for number in range(self.shards)
        ]
        scaled = self.most_encoders > self.encoders
        encoder = serve.deployment(EncoderReplica, name=ENCODER).options(
            num_replicas="auto" if scaled else self.encoders,
            autoscaling_config=self._scaling() if scaled else None,
            max_ongoing_requests=2,  # one batch is computed while the next is there already
            ray_actor_options={"num_cpus": self.threads, "num_gpus": self.gpus},
            graceful_shutdown_wait_loop_s=0.5,
        )
        application = encoder.bind(place, manifest.version, shards, self.threads)
        return Backend(manifest.version, place, self.shards), application

    def front(self, backend: Backend) -> serve.Application:
        """Return the application that takes requests and lets ``backend`` compute."""
        ingress = serve.deployment(serve.ingress()(IngressReplica), name=INGRESS).options(
            num_replicas=self.ingresses,
            max_ongoing_requests=MOST_REQUESTS,
            ray_actor_options={"num_cpus": SMALL},
            user_config=asdict(backend),
        )
        return ingress.bind(self.lanes)

    def _scaling(self) -> AutoscalingConfig:
        policy = AutoscalingPolicy(
            policy_function=PositionsPolicy, policy_kwargs={"per_replica": float(self.positions)}
        )
        options: dict[str, Any] = scaling_options(self.encoders, self.most_encoders, self.grow_s, self.shrink_s)
        return AutoscalingConfig(**options, policy=policy)


def deploy(layout: Layout, folder: Path) -> str:
    """Serve the artifact in ``folder``, in the place of what is served; returns its version.

    Blocks until every ingress answers with it; then the replicas of others end.

    Raises:
        ArtifactError: the folder holds no artifact.
        DeployError: the artifact is refused. What was served goes on, and the new replicas end.
    """
    backend, application = layout.backend(folder)
    before = _served(layout)
    if before is not None and before.application == backend.application:
        raise DeployError(
            f"version {backend.version} is served already, with {before.shards} shards from {before.folder}; only "
            "another version can take its place"
        )
    try:
        _run(application, backend.application, None)
        _follow(_run(layout.front(backend), FRONT, "/"), backend)
    except DeployError:
        if before is not None:
            _run(layout.front(before), FRONT, "/")
        serve.delete(backend.application)
        raise
    for other in serve.status().applications:
        if other.startswith(PREFIX) and other != backend.application:
            serve.delete(other)
    return backend.version


def _served(layout: Layout) -> Backend | None:
    """Return what the cluster serves; raises `DeployError` where its ingresses would have to be started anew."""
    if FRONT not in serve.status().applications:
        return None
    handle = serve.get_deployment_handle(INGRESS, FRONT)
    lanes, backend = handle.settled.remote().result(timeout_s=UPDATE_S)
    if lanes != layout.lanes:
        raise DeployError(
            f"the ingresses were started for at most {lanes} encoders, given {layout.most_encoders}; an update "
            "changes the artifact and leaves --most-encoders as it is"
        )
    return Backend(**backend)


def _run(application: serve.Application, name: str, route: str | None) -> DeploymentHandle:
    """Start or change an application and wait until it runs; raises `DeployError`."""
    try:
        return serve.run(application, name=name, route_prefix=route)
    except RuntimeError as error:
        details = serve.status().applications.get(name)
        raise DeployError(" ".join(f"{details.message if details else error}".split())[-1000:]) from error


def _follow(front: DeploymentHandle, backend: Backend) -> None:
    """Wait until every ingress answers with ``backend``; raises `DeployError`."""
    end = time.monotonic() + UPDATE_S
    while True:
        said: list[Any] = front.broadcast("serving").results(timeout_s=UPDATE_S)
        if said and all(version == backend.version for version, _ in said):
            return
        refused = next((why for _, why in said if why), None)
        if refused is not None or time.monotonic() > end:
            raise DeployError(refused or f"version {backend.version} is not served after {UPDATE_S:g} s")
        time.sleep(0.5)
