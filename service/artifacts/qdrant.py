"""Artifacts whose index is searched by a Qdrant engine. Imported only where one is set: its client is an extra."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import replace

import structlog

from index.build import recall_of
from index.qdrant.engine import COLLECTIONS, Address, Engine, Report
from index.qdrant.filling import Held
from index.qdrant.payload import Payload
from index.qdrant.searching import QdrantIndex, SearchOptions
from index.unavailable import SearchUnavailable
from modeling.artifact.part_names import Part
from service.artifacts.loading import CATALOG, INDEX, POOL, IndexSource, only_vectors
from service.artifacts.memory import SharedBlock
from service.errors import StartError
from service.observability.metrics import Metrics
from service.settings import Settings

log = structlog.get_logger(__name__)

LAYOUT = 1
"""Of collections: what is written into one by another layout has another name."""


class ServedEngine:
    """The engine that a service's settings name, and how artifacts' indexes are opened as its collections.

    Raises:
        StartError: it cannot be opened; one sentence.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics, self._missed = settings, metrics, False
        key = settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else ""
        address = Address(settings.qdrant_url, key, settings.qdrant_timeout_ms / 1e3)
        self._options = SearchOptions(settings.qdrant_effort, settings.qdrant_exact, settings.qdrant_away == "refuse")
        try:
            self._engine = engine = Engine(address, Report(self._answered, self._failed))
        except (RuntimeError, OSError, ValueError) as error:
            raise StartError(f"the index engine at {address.url} cannot be opened: {error}") from error
        if key and address.url.startswith("http:"):
            log.warning("the key of the index engine is sent unencrypted", url=address.url)
        metrics.index_engine_up.set_function(lambda: engine.away is None)

    def open_index(self, source: IndexSource) -> SharedBlock:
        """Return the index of an artifact; see `open_artifact`. Blocks while its collection is filled."""

        def make() -> SharedBlock:
            index = self._opened(source)
            return SharedBlock(Part.INDEX, index, index.nbytes)

        return POOL.share(("qdrant", self._engine, source.hashes(INDEX, CATALOG)), make)

    def close(self) -> None:
        """End the connection. Blocks."""
        self._engine.close()

    def _answered(self, seconds: float) -> None:
        self._metrics.index_engine_seconds.observe(seconds)
        if self._missed:
            self._missed = False
            log.info("the index engine is back")

    def _failed(self, detail: str) -> None:
        self._metrics.index_engine_failures.inc()
        if not self._missed:
            self._missed = True
            log.warning("the index engine is away", reason=detail, until_then=self._settings.qdrant_away)

    def _opened(self, source: IndexSource) -> QdrantIndex:
        """Return the index over a collection that is there and whole; it is removed once no replica uses it any
        more."""
        artifact, least = source.manifest.name, self._settings.qdrant_least_recall
        content = repr((LAYOUT, source.hashes(INDEX, CATALOG)))
        digest = hashlib.sha256(content.encode()).hexdigest()
        name = f"{COLLECTIONS}{source.manifest.version}-{digest[:16]}"
        held = Held(name, only_vectors(source).value, Payload(source.catalog))
        try:
            self._engine.open(held, self._settings.load_seconds)
            index = QdrantIndex(self._engine, held, self._options, self._metrics.index_engine_fallbacks.inc)
            weakref.finalize(index, self._engine.release, name).atexit = False
            measured = QdrantIndex(self._engine, held, replace(self._options, refuse=True))
            if len(source.users_QD):  # an artifact without golden histories is refused later
                index.recall_at_10 = recall_of(measured, source.users_QD, held.vectors)
        except SearchUnavailable as error:
            raise StartError(f"artifact {artifact}: {error.detail}") from error
        if index.recall_at_10 < least:
            raise StartError(
                f"artifact {artifact}: collection {name} finds {index.recall_at_10:.0%} of the ten best items of its "
                f"golden users, and ANYO_QDRANT_LEAST_RECALL is {least:g}; raise ANYO_QDRANT_EFFORT, or look at the "
                "engine's quantization"
            )
        log.info("collection ready", name=name, items=index.size, recall_at_10=index.recall_at_10)
        return index
