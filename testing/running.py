"""Services for tests: in the test's own event loop behind httpx, or as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from service.artifacts.loading import AnyLoaded, LoadedArtifact, LoadedGenerative
from service.http.app import create_app
from service.http.callers import READING
from service.service import Service
from service.settings import load_settings
from testing.fake_parts import TableEncoder, item_id, make_parts, opener
from testing.fake_writer import TitleWriter

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Running:
    """A started service, a client for it, and its parts."""

    service: Service
    client: httpx.AsyncClient
    parts: LoadedArtifact
    generative: LoadedGenerative | None = None

    @property
    def writer(self) -> TitleWriter:
        assert self.generative is not None
        return self.generative.model  # type: ignore[return-value]

    async def write(self, **body: Any) -> httpx.Response:
        return await self.client.post("/recommend/generative", json=body)

    async def occupy_writer(self) -> asyncio.Task[httpx.Response]:
        """Stop the writer in its first step, with one request on it; `writer.gate.set()` lets it go on."""
        before = self.writer.steps
        self.writer.gate.clear()
        first = asyncio.create_task(self.write(history=[item_id(199)]))
        while self.writer.steps == before:
            await asyncio.sleep(0.002)
        return first

    @property
    def encoder(self) -> TableEncoder:
        return self.parts.encoder  # type: ignore[return-value]

    async def recommend(self, **body: Any) -> httpx.Response:
        return await self.client.post("/recommend", json=body)

    async def occupy_device(self) -> asyncio.Task[httpx.Response]:
        """Close the device with one request on it, so that what comes now queues up; `encoder.gate.set()` opens it."""
        before = self.encoder.entered
        self.encoder.gate.clear()
        first = asyncio.create_task(self.recommend(history=[item_id(199)]))
        while self.encoder.entered == before:
            await asyncio.sleep(0.002)
        return first

    def metric(self, name: str, /, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


async def declare(service: Service, request: httpx.Request) -> None:
    """Add what whoever started the service sends with what changes something: the type, also of no body, and the admin
    key of this start where there is one. What a test sends itself stays."""
    if request.method not in READING:
        if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
            request.headers.setdefault("content-type", "application/json")
        if service.start_key is not None:
            request.headers.setdefault("x-api-key", service.start_key)


@contextlib.asynccontextmanager
async def running(
    parts: LoadedArtifact | None = None,
    *,
    generative: LoadedGenerative | None = None,
    opens: Callable[[Path, str], AnyLoaded] | None = None,
    **given: Any,
) -> AsyncIterator[Running]:
    """Start a service on `parts` and `generative`; `opens` makes those of other folders, `given` are settings."""
    parts = parts or make_parts()
    first: Any = opener(parts, generative)
    folders = tuple(map(Path, ("fake",) if generative is None else ("fake", generative.name)))

    def open_artifact(folder: Path, device: str) -> AnyLoaded:
        return first(folder, device) if opens is None or folder in folders else opens(folder, device)

    given = {"store": "sqlite:///:memory:", "warmup_requests": 2, **given}
    service = Service(load_settings(artifacts=folders, **given), open_artifact=open_artifact)
    transport = httpx.ASGITransport(create_app(service))
    await service.start()
    try:
        assert service.loading is not None
        await service.loading
        encoder: Any = parts.encoder
        encoder.batches.clear()
        if generative is not None:
            writer: Any = generative.model
            writer.batches.clear()
        hooks: Any = {"request": [partial(declare, service)]}
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", event_hooks=hooks) as client:
            yield Running(service, client, parts, generative)
    finally:
        await service.close()


class Process:
    """A fake server as a real process on a free port of 127.0.0.1; while `hold` exists its device waits.

    It has a `url` once `wait_ready` has returned.
    """

    def __init__(self, folder: Path, *, store: str | None = None, **settings: Any) -> None:
        self.hold = folder / "hold"
        store = store or f"sqlite:///{folder}/histories.sqlite"
        arguments = [f"{name}={value}" for name, value in settings.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "testing.fake_server", "0", store, str(self.hold), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.url, self.admin_key = "", None

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server did not start: {self.process.communicate()[1]}")
        said = json.loads(line)
        self.url, self.admin_key = said["url"], said["admin_key"]

    def end(self, number: int = signal.SIGTERM, patience_s: float = 30) -> tuple[int, str]:
        """Send a signal, wait for the end; returns the exit code and the log."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        _, log = self.process.communicate(timeout=patience_s)
        return self.process.returncode, log


@contextlib.contextmanager
def process(folder: Path, **settings: Any) -> Iterator[Process]:
    """Run a fake server whose store lives in `folder`, or where the setting `store` says."""
    with processes(1, folder, **settings) as (server,):
        yield server


@contextlib.contextmanager
def processes(number: int, folder: Path, **settings: Any) -> Iterator[list[Process]]:
    """Run several, started together."""
    servers = [Process(folder, **settings) for _ in range(number)]
    try:
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.process.kill()
            server.process.communicate()
