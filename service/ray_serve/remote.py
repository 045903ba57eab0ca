"""An artifact whose encoder and index are elsewhere; all else of it is here, and the engine knows no difference."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from index.sharded import ShardAnswer, ShardCall, ShardedIndex
from modeling.artifact.part_names import Part
from modeling.encoder.prompt import FreeItem, Prompt
from modeling.methods.base import HistoryEncoder
from service.artifacts.loading import AnyLoaded, IndexSource, LoadedArtifact, open_artifact
from service.artifacts.memory import SharedBlock
from service.errors import StartError
from service.ray_serve.calls import Calls

PREFIX = "anyo-"


class DeployError(Exception):
    """A cluster does not serve what it was told to serve; the message is one sentence."""


@dataclass(frozen=True)
class Backend:
    """Where a version of an artifact is computed.

    Attributes:
        version: of the artifact.
        folder: of the artifact, at the same path on every machine.
        shards: of its index.
    """

    version: str
    folder: str
    shards: int

    @property
    def application(self) -> str:
        """Name of the application of Ray Serve."""
        return PREFIX + self.version


@dataclass(frozen=True)
class Sender:
    """Who asks replicas: its name, and how many positions wait in its queue."""

    name: str
    waiting: Callable[[], int]


@dataclass(frozen=True)
class EncoderFacts:
    """What replicas that encode say of themselves."""

    version: str
    precision: Any


class Replicas(Protocol):
    """Where an artifact's encoder and its shards are."""

    def encode(self, prompts: Sequence[Prompt], sender: str, positions: int) -> Awaitable[NDArray[np.float32]]:
        """User vectors [B, D]; ``sender`` has so many positions in its queue and under way."""
        ...

    def facts(self) -> Awaitable[EncoderFacts]:
        """Of the encoder."""
        ...

    def ask(self, shard: int, call: ShardCall) -> Awaitable[ShardAnswer]:
        """The answer of one shard of the index."""
        ...


class RemoteEncoder(HistoryEncoder):
    """Reads titles and puts prompts together here; vectors of histories are computed by replicas.

    Args:
        local: encoder of the same artifact.
    """

    fast = None  # nothing is computed here that a cache or prepared products would help

    def __init__(self, local: HistoryEncoder, replicas: Replicas, calls: Calls, sender: Sender) -> None:
        self._local, self._replicas, self._calls, self._sender = local, replicas, calls, sender
        self._sent, self._lock = 0, threading.Lock()

    @property
    def history_limit(self) -> int:
        """Newest items that are read."""
        return self._local.history_limit

    @property
    def exact(self) -> bool:
        """Whether vectors are those of training."""
        return self._local.exact

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """See `HistoryEncoder.read_titles`."""
        return self._local.read_titles(titles)

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        """See `HistoryEncoder.prepare`."""
        return self._local.prepare(history)

    def free_vectors(self, items: Sequence[FreeItem]) -> NDArray[np.float32]:
        """See `HistoryEncoder.free_vectors`."""
        return self._local.free_vectors(items)

    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """User vectors [B, D] from one of the replicas."""
        positions = sum(prompt.length for prompt in prompts)
        self._count(positions)
        who = self._sender
        try:
            return self._calls.one(lambda: self._replicas.encode(prompts, who.name, self._sent + who.waiting()))
        finally:
            self._count(-positions)

    def _count(self, positions: int) -> None:
        with self._lock:
            self._sent += positions


def open_remote(
    folder: Path,
    replicas: Replicas,
    shards: int,
    calls: Calls,
    sender: Sender,
    *,
    download: bool = False,
    map_index: bool = False,
) -> LoadedArtifact:
    """Load all of a dense artifact but its index, whose ``shards`` are asked; see `open_artifact`.

    The model is here too: it reads titles, and makes item vectors of them.

    Raises:
        StartError: the artifact cannot be used, writes its answers, or the replicas have another version of it.
    """
    sharded = partial(_sharded, shards, replicas, calls)
    parts: AnyLoaded = open_artifact(folder, "cpu", download=download, map_index=map_index, open_index=sharded)
    if parts.kind != "dense":
        raise StartError(f"artifact {parts.name} writes its answers; replicas and shards are for dense artifacts only")
    facts = calls.one(replicas.facts)
    if facts.version != parts.version:
        raise StartError(f"artifact {parts.name} has version {parts.version}, and its replicas have {facts.version}")
    encoder = RemoteEncoder(parts.encoder, replicas, calls, sender)
    return replace(parts, encoder=encoder, precision=facts.precision)


def _sharded(shards: int, replicas: Replicas, calls: Calls, source: IndexSource) -> SharedBlock:
    entry = source.entry()

    def scatter(asked: Mapping[int, ShardCall]) -> Mapping[int, ShardAnswer]:
        return calls.all({shard: partial(replicas.ask, shard, call) for shard, call in asked.items()})

    return SharedBlock(Part.INDEX, ShardedIndex(entry.size, entry.dim, shards, scatter), 0)
