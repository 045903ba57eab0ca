"""A replica that computes user vectors, and by how many positions such replicas are scaled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.sharded import ShardedIndex
from modeling.artifact.part_names import Part
from modeling.encoder.prompt import Prompt
from service.artifacts.loading import IndexSource, open_artifact
from service.artifacts.memory import SharedBlock
from service.engine.cpu import set_model_threads
from service.ray_serve.remote import EncoderFacts
from service.ray_serve.scaling import POSITIONS
from service.settings import load_settings

FORGOTTEN_S = 2.0
"""After so long without a call, what a sender said of its queue counts no more."""


class EncoderReplica:
    """Encodes histories with the artifact in ``folder``, one batch at a time.

    Args:
        folder: of the artifact.
        version: what it must hold; a replica that is started again later must not serve another.
        shards: handles of the shards, which makes them part of one application with the encoder.
        threads: of a forward pass.
    """

    def __init__(self, folder: str, version: str, shards: Sequence[Any], threads: int) -> None:
        settings = load_settings()
        self._parts = open_artifact(
            Path(folder),
            settings.device,
            settings.precision,
            settings.max_batch_tokens,
            precision_forced=settings.precision_forced,
            download=settings.allow_downloads,
            map_index=settings.map_index,
            open_index=_no_index,
        )
        if self._parts.kind != "dense" or self._parts.version != version:
            raise ValueError(f"{folder} holds version {self._parts.version}, and {version} is to be served")
        self._shards = shards
        self._threads = threads
        self._thread = ThreadPoolExecutor(1, "anyo-encode")
        self._said: dict[str, tuple[int, float]] = {}

    async def encode(self, prompts: Sequence[Prompt], sender: str, positions: int) -> NDArray[np.float32]:
        """User vectors [B, D]; ``sender`` has so many positions in its queue and under way."""
        self._said[sender] = positions, time.monotonic()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, prompts)

    def _encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        assert self._parts.kind == "dense"
        set_model_threads(self._threads)
        return self._parts.encoder.encode(prompts)

    async def facts(self) -> EncoderFacts:
        """Say what is served here."""
        return EncoderFacts(self._parts.version, self._parts.precision)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Say how many positions all senders have; Ray Serve asks for it."""
        return {POSITIONS: float(positions_of(self._said, time.monotonic()))}


def positions_of(said: dict[str, tuple[int, float]], now: float) -> int:
    """Return the positions of all senders that were heard of lately."""
    return sum(positions for positions, when in said.values() if now - when <= FORGOTTEN_S)


def _no_index(source: IndexSource) -> SharedBlock:
    """Return an index of the right size and width that cannot be searched: an encoder searches nothing."""
    entry = source.entry()

    def refused(asked: Any) -> Any:
        raise RuntimeError("a replica that encodes has no index")

    return SharedBlock(Part.INDEX, ShardedIndex(entry.size, entry.dim, 1, refused), 0)
