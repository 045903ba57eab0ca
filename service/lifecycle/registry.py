"""Which artifacts are loaded and which one answers by default: loading, swapping and unloading while requests run.

One such operation at a time. A load puts the new artifact beside what serves, checks its golden answers and warms
it up, and only then exchanges one reference: requests that began with the old one end with it, the next ones go to
the new one. The old one's memory comes back when its last request has been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import re
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import structlog

from modeling.artifact.manifest import one_line
from service.artifacts.loading import AnyLoaded, expected_bytes, version_on_disk
from service.artifacts.memory import give_memory_back, total_bytes
from service.artifacts.trial import Limits
from service.caches.shared import SharedCache
from service.concurrency.threads import in_thread
from service.engine.device_lock import DeviceLock
from service.errors import AnyoError, Conflict, InvalidInput, NotReady, StartError, UnknownName
from service.items.live import LiveItems
from service.lifecycle.lookup import AnyRecommender, ArtifactLookup
from service.lifecycle.warmup import rehearse
from service.lifecycle.warmup_generative import rehearse_generative
from service.observability.metrics import Metrics
from service.recommend.dense import DenseRecommender
from service.recommend.generative import GenerativeRecommender
from service.settings import Settings
from service.stores.guarded import GuardedStore

log = structlog.get_logger(__name__)

T = TypeVar("T")
OpenArtifact = Callable[[Path, str], AnyLoaded]
Trial = Callable[[Path, Limits], Awaitable[str]]
FOLDER_NAME = "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
NAME = re.compile(FOLDER_NAME, re.ASCII)
LAST_ANSWERS_S = 2.0  # beyond the deadline of the requests that an old artifact still answers


class NoRoom(StartError):
    """An artifact does not fit beside what is loaded."""


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A running operation on an artifact, since when (a time of `time.monotonic`)."""

    name: str
    step: str
    since: float


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Let what an artifact makes the code raise be a StartError of one sentence; what says itself what it is passes."""
    try:
        yield
    except (StartError, AnyoError):
        raise
    except Exception as error:
        log.warning("artifact refused", name=name, error=repr(error)[:1000])
        raise StartError(f"artifact {name} cannot be loaded: {one_line(error) or type(error).__name__}") from error


class Registry(ArtifactLookup):
    """The loaded artifacts of one process. All methods run on the event loop."""

    def __init__(
        self,
        settings: Settings,
        store: GuardedStore,
        metrics: Metrics,
        open_artifact: OpenArtifact,
        cache: SharedCache | None = None,
        trial: Trial | None = None,
        items: LiveItems | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._open_parts = open_artifact
        self._cache = cache
        self._trial = trial
        self._items = items or LiveItems(settings, metrics, None)
        self._cancelled = asyncio.Event()
        self._can_cancel = False  # a load that has not been published yet
        self._folders: dict[str, Path] = {}  # of the artifacts named at the start, which may lie anywhere
        self._retiring: list[AnyRecommender] = []
        self._step: Callable[[str], None] = lambda step: None
        self.device = DeviceLock()
        super().__init__()
        self.operation: Operation | None = None
        self.closed = False

    # -- operations ------------------------------------------------------------------------------------------

    async def load_at_start(self, folder: Path, step: Callable[[str], None], name: str | None = None) -> None:
        """Load an artifact that was named at the start, as `name` or as it was trained; the first is the default.

        Raises StartError, NotReady (told to end meanwhile).
        """
        with self._operating(name or folder.name, step):
            with _one_sentence(folder.name):
                await self._check_room(folder)
                parts = await self._opened(folder, trial=self._settings.load_trial == "always")
                parts = parts if name is None else dataclasses.replace(parts, name=name)
                if parts.name in self.recommenders:
                    raise StartError(
                        f"two of the artifacts are called {parts.name!r}, and names must differ: give one of them "
                        f"another, as in {parts.name[:40]}-2={folder}"
                    )
                await self._admit(parts)
            self._folders[parts.name] = folder.absolute()

    async def load(self, name: str, given: Path | None = None) -> bool:
        """Load an artifact, or the version that has taken its folder's place; False where that is loaded already. A
        `given` folder is where it is looked for, now and later.

        Raises UnknownName (no such folder), Conflict (another operation, not enough room, or an artifact that is
        refused; what serves goes on serving), NotReady (shutting down meanwhile).
        """
        with self._operating(name):
            folder = given if given is not None else await asyncio.to_thread(self._folder, name)
            loaded = self.recommenders.get(name)
            version = await asyncio.to_thread(version_on_disk, folder)
            if loaded is not None and version == loaded.parts.version:
                return False
            if (refusal := await self._try_to_load(name, folder)) is not None:
                await asyncio.to_thread(give_memory_back)
                raise refusal
            if given is not None:
                self._folders[name] = given.absolute()
            if loaded is not None:
                del loaded
                await self._retire(self._retiring[-1])
            return True

    async def _try_to_load(self, name: str, folder: Path) -> Conflict | None:
        """Load and publish; a refusal is returned, free of the frames in which the refused parts still stand."""
        try:
            with _one_sentence(folder.name):
                await self._check_room(folder)
                parts = await self._opened(folder, trial=self._settings.load_trial != "never")
                # Served under the name it was asked for, so that two versions can stand side by side.
                await self._admit(dataclasses.replace(parts, name=name))
        except StartError as error:
            message = str(error).replace(f"{folder.parent}/", "")
            code = "no_room" if isinstance(error, NoRoom) else "artifact_refused"
            return Conflict(f"{message}; nothing was changed", code=code)
        return None

    async def _opened(self, folder: Path, *, trial: bool) -> AnyLoaded:
        """Load the parts in a thread, where it is wanted after a trial in another process; raises StartError."""
        version = None
        if trial and self._trial is not None:
            self._step(f"trying {folder.name} in a process of its own")
            version = await self._in_time(self._trial(folder, Limits.of(self._settings)))
            self._step(f"loading {folder.name}")
        parts = await self._in_time(in_thread(self._open_parts, folder, self._settings.device))
        if version not in (None, parts.version):
            raise StartError(
                f"artifact {folder.name} was replaced while it was being loaded (version {version}, now "
                f"{parts.version}); load it again"
            )
        return parts

    async def _in_time(self, work: Awaitable[T]) -> T:
        """Wait for a step of a load until it is done, takes too long, or the load is cancelled; raises StartError."""
        task, seconds = asyncio.ensure_future(work), self._settings.load_seconds
        cancelled = asyncio.create_task(self._cancelled.wait())
        try:
            done, _ = await asyncio.wait({task, cancelled}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task in done:
                return task.result()
        finally:
            cancelled.cancel()
            task.cancel()
            await asyncio.wait({task})
            del task  # its error holds this frame
        if self._cancelled.is_set():
            raise StartError("the load was cancelled by an unload of the same name")
        raise StartError(f"it takes longer than {seconds:g} s to load (ANYO_LOAD_SECONDS)")

    async def unload(self, name: str, *, in_use: Callable[[str], bool]) -> int:
        """Unload an artifact and return how many bytes came back; `in_use`: whether the traffic
        names it, asked at the moment that it would go.

        The default one stays, unless it is the only generative one: that can go, the dense endpoints need none.

        One that is just being loaded is cancelled; what was loaded under its name before is unloaded then.

        Raises UnknownName, Conflict (it is the default, or in use, or another operation is going on).
        """
        if await self._cancel_load(name) and name not in self.recommenders:
            return 0
        with self._operating(name):
            if name not in self.recommenders:
                raise self.unknown(name)
            kind = self.recommenders[name].kind
            alone = kind == "generative" and sum(each.kind == kind for each in self.recommenders.values()) == 1
            if name == self.defaults.get(kind) and not alone:
                raise Conflict(
                    f"artifact {name!r} is the default {kind} one, which answers requests that name none; activate "
                    "another first",
                    code="in_use",
                )
            if in_use(name):
                raise Conflict(
                    f"artifact {name!r} takes part in the traffic; PUT /traffic without it first", code="in_use"
                )
            if alone:
                del self.defaults[kind]
                self._metrics.show_default(kind, None)
            before = self.bytes()
            self._retiring.append(self.recommenders.pop(name))
            await self._retire(self._retiring[-1])
            return before - self.bytes()

    async def _cancel_load(self, name: str) -> bool:
        """End a load of this name; returns whether there was one."""
        if self.operation is None or self.operation.name != name or not self._can_cancel:
            return False
        self._cancelled.set()
        while self.operation is not None and self.operation.name == name:
            await asyncio.sleep(0.01)
        return True

    def activate(self, name: str) -> None:
        """Make a loaded artifact the default one of its kind, from the next request on; raises UnknownName."""
        if name not in self.recommenders:
            raise self.unknown(name)
        self._make_default(name)

    async def close(self, within: float) -> None:
        """Drain all artifacts for at most `within` seconds and take no further operation."""
        self.closed = True
        everything = [*self.recommenders.values(), *self._retiring]
        await asyncio.gather(*(recommender.close(within) for recommender in everything))

    def bytes(self) -> int:
        """Return the memory of all loaded artifacts, shared parts counted once."""
        return total_bytes(each.parts.pieces for each in (*self.recommenders.values(), *self._retiring))

    # -- steps -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _operating(self, name: str, step: Callable[[str], None] = lambda step: None) -> Iterator[None]:
        if self.operation is not None:
            raise Conflict(
                f"artifact {self.operation.name!r} is just being worked on ({self.operation.step}); "
                "one operation at a time, try again when it is done",
                code="busy",
                retry_after=1,
            )
        started = time.monotonic()

        def note(what: str) -> None:
            self.operation = Operation(name, what, started)
            step(what)

        self._step = note
        note(f"loading {name}")
        self._cancelled.clear()
        self._can_cancel = True
        try:
            yield
        finally:
            self.operation, self._can_cancel = None, False

    def _folder(self, name: str) -> Path:
        """Return where the artifact called `name` lies. Never a path that a client made up: a plain name only."""
        if not NAME.fullmatch(name):
            raise InvalidInput(
                f"{name[:80]!r} is no name of an artifact; a name has letters, digits, '.', '_' and '-', at most 128, "
                "and starts with a letter or digit",
                field="name",
            )
        root = self._settings.artifacts_root
        if root is not None and (root / name / "manifest.json").is_file():
            return root / name
        if name in self._folders:
            return self._folders[name]
        where = "ANYO_ARTIFACTS_ROOT is not set" if root is None else "the folder of artifacts has none of this name"
        raise UnknownName(f"there is no artifact {name!r} to load: {where}", code="unknown_artifact")

    async def _check_room(self, folder: Path) -> None:
        """Refuse before anything is read what cannot fit by the sizes of its files."""
        if self._settings.max_artifact_bytes:
            known = frozenset().union(*(each.parts.files for each in self.recommenders.values()))
            mapped, device, engine = self._settings.map_index, self._settings.device, bool(self._settings.qdrant_url)
            expected = await asyncio.to_thread(expected_bytes, folder, known, mapped, device, engine)
            self._refuse_beyond(expected, folder.name)

    def _refuse_beyond(self, more: int, name: str) -> None:
        limit, used = self._settings.max_artifact_bytes, self.bytes()
        if limit and used + more > limit:
            raise NoRoom(
                f"loading {name!r} needs {more} bytes beside the {used} that are loaded, {used + more} in all, and "
                f"ANYO_MAX_ARTIFACT_BYTES is {limit}; unload an artifact first, or raise the limit"
            )

    async def _admit(self, parts: AnyLoaded) -> None:
        """Check, warm up and publish parts; the one they replace is at the end of `_retiring` then."""
        started = time.monotonic()
        replaced = self.recommenders.get(parts.name)
        if replaced is not None and replaced.kind != parts.kind:
            raise StartError(
                f"artifact {parts.name!r} is loaded as a {replaced.kind} one, and its folder now holds one of the "
                "other kind; unload it first"
            )
        with_it = total_bytes(
            [parts.pieces, *(each.parts.pieces for each in (*self.recommenders.values(), *self._retiring))]
        )
        self._refuse_beyond(with_it - self.bytes(), parts.name)
        self._step(f"checking and warming up {parts.name}")
        recommender = await self._in_time(self._rehearsed(parts))
        self._can_cancel = False
        recommender.start()
        kind, old = recommender.kind, self.recommenders.get(parts.name)
        if old is not None:
            self._retiring.append(old)
        self.recommenders[parts.name] = recommender  # from here on it answers
        self._metrics.artifact_info(parts.name, parts.version, parts.recipe).set(1)
        if self.defaults.get(kind) in (None, parts.name):
            self._make_default(parts.name)
        log.info("artifact ready", name=parts.name, version=parts.version, recipe=parts.recipe,
                 items=len(parts.catalog), bytes=total_bytes([parts.pieces]),
                 seconds=round(time.monotonic() - started, 2))  # fmt: skip
        # What was loaded stays long: the collector need not walk it again and again.
        gc.collect()
        gc.freeze()

    async def _rehearsed(self, parts: AnyLoaded) -> AnyRecommender:
        """Check golden answers, warm up, and return what will answer; raises StartError, NotReady."""
        if parts.kind == "generative":
            await rehearse_generative(parts, self._store, self._settings, self.device)
            self._refuse_if_closed()
            generative = GenerativeRecommender(parts, self._store, self._settings, self._metrics, self.device)
            await self._items.attach(generative.items)
            return generative
        rate = await rehearse(parts, self._store, self._settings, self.device)
        self._refuse_if_closed()
        shared = self._cache.of(parts) if self._cache is not None else None
        dense = DenseRecommender(parts, self._store, self._settings, self._metrics, shared, rate, self.device)
        await self._items.attach(dense.items)
        return dense

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise NotReady("the service is shutting down", code="draining")

    async def _retire(self, recommender: AnyRecommender) -> None:
        """Answer what an artifact that left the table still has to answer, then give its memory back."""
        self._step(f"waiting for the last requests of {recommender.parts.name}")
        generative = recommender.kind == "generative"
        deadline_ms = self._settings.generative_deadline_ms if generative else self._settings.deadline_ms
        await recommender.close(deadline_ms / 1000 + LAST_ANSWERS_S)
        self._items.detach(recommender.items)
        parts = recommender.parts
        if (parts.name, parts.version, parts.recipe) not in self._shown():
            self._metrics.forget(self._metrics.artifact_info, parts.name, parts.version, parts.recipe)
        self._retiring.remove(recommender)
        log.info("artifact unloaded", name=parts.name, version=parts.version)
        gone: weakref.ref[Any] = weakref.ref(parts.reader)
        del recommender, parts
        await asyncio.to_thread(give_memory_back, gone)

    def _shown(self) -> set[tuple[str, str, str]]:
        loaded = (each.parts for each in self.recommenders.values())
        return {(parts.name, parts.version, parts.recipe) for parts in loaded}

    def _make_default(self, name: str) -> None:
        recommender = self.recommenders[name]
        self.defaults[recommender.kind] = name
        self._metrics.show_default(recommender.kind, (name, recommender.parts.version))
        if recommender.kind == "dense":
            self._metrics.index_items.set_function(lambda: len(recommender.catalog))
            self._metrics.index_recall.set(recommender.parts.index.recall_at_10)
