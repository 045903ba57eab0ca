"""What no waiting mends stops the start with one sentence; a Redis that is only away does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import StartError
from service.item_stores.sqlite import SqliteItemStore
from service.stores import sqlite_file
from service.stores.base import Event
from service.stores.sqlite import SCHEMA, SqliteStore
from testing.fake_parts import item_id
from testing.redis_server import RedisServer, free_port, redis_server
from testing.running import running

USERS = 60


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A store with some hundred pages."""
    path = tmp_path / "h.sqlite"
    store = SqliteStore(str(path), keep=500)
    await store.open()
    for user in range(USERS):
        await store.append(f"u{user}", [Event(f"item {number}", number, f"e{number}") for number in range(40)])
    await store.close()
    return path


def with_random_pages(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(2 * 4096)
        stream.write(os.urandom(path.stat().st_size - 3 * 4096))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def no_database(path: Path) -> None:
    path.write_bytes(b"this is no database, and longer than a header has to be " * 9)


def of_something_else(path: Path, version: int = 0) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"CREATE TABLE places (name TEXT); PRAGMA user_version={version}")


def of_something_else_with_the_same_number(path: Path) -> None:
    of_something_else(path, version=1)


def of_another_schema(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{SCHEMA} PRAGMA user_version=7")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "random pages": (with_random_pages, "it is damaged"),
    "cut short": (cut_short, "it is damaged"),
    "no database": (no_database, "it is no SQLite database"),
    "something else": (of_something_else, "a database of something else"),
    "something else, same number": (of_something_else_with_the_same_number, "a database of something else"),
    "another schema": (of_another_schema, "schema 7; this version of the service reads 1"),
    "a folder": (a_folder, "it is a folder"),
}


@pytest.mark.parametrize(("damage", "says"), BROKEN.values(), ids=BROKEN)
async def test_a_file_that_cannot_be_used_stops_the_start(
    file: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(file)
    before = None if file.is_dir() else file.read_bytes()
    with pytest.raises(StartError) as refusal:
        async with running(store=f"sqlite:///{file}"):
            pass
    assert says in str(refusal.value) and str(file) in str(refusal.value) and "\n" not in str(refusal.value)
    if before is not None and damage in (no_database, of_something_else):
        assert file.read_bytes() == before, "what is not ours is left as it was"


def test_replicas_that_start_together_may_all_make_the_file(tmp_path: Path) -> None:
    """Each of four opens every one of forty new files at the same moment; one fills it, and nobody fails."""
    together = threading.Barrier(4)

    def opened(_: int) -> None:
        for number in range(40):
            together.wait(timeout=10)
            sqlite_file.connect(str(tmp_path / f"{number}.sqlite"), SCHEMA, 1).close()

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(opened, range(4)))


async def test_a_folder_that_cannot_be_made_and_a_locked_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StartError, match="its folder cannot be made"):
        async with running(store=f"sqlite:///{file}/below/h.sqlite"):
            pass
    monkeypatch.setattr(sqlite_file, "BUSY_TIMEOUT_S", 0.1)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StartError, match="another process has held it"):
            async with running(store=f"sqlite:///{file}"):
                pass
    async with running(store=f"sqlite:///{file}") as anyo:
        assert (await anyo.client.get("/users/u3")).status_code == 200


async def test_a_file_that_may_not_be_written_stops_the_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect

    def read_only(path: str, **given: object) -> sqlite3.Connection:
        return real(f"file:{path}?mode=ro", uri=True, **given)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(sqlite_file.sqlite3, "connect", read_only)
    with pytest.raises(StartError, match="it may not be written"):
        await SqliteStore(str(file), keep=5).open()


async def test_a_check_that_takes_too_long_is_left_off(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "CHECK_S", -1.0)
    monkeypatch.setattr(sqlite_file, "CHECK_STEPS", 1)
    async with running(store=f"sqlite:///{file}") as anyo:
        assert (await anyo.client.get("/users/u3")).status_code == 200
        assert (await anyo.client.post("/users/u/events", json={"events": [{"item_id": "x"}]})).status_code == 200


# -- Redis --------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path / "redis") as server:
        yield server


async def refusal_of(url: str, name: str) -> str:
    """Return the sentence with which a start with `url` as the store or the cache ends."""
    with pytest.raises(StartError) as refusal:
        async with running(**{name: url, "store_timeout_ms": 10_000, "redis_timeout_ms": 1000}):
            pass
    return str(refusal.value)


@pytest.mark.parametrize("name", ["store", "cache"])
async def test_a_database_that_redis_does_not_have_stops_the_start(redis: RedisServer, name: str) -> None:
    assert "database 99" in await refusal_of(redis.url.replace("/0", "/99"), name)


@pytest.mark.parametrize("name", ["store", "cache"])
async def test_a_user_that_redis_does_not_know_stops_the_start(redis: RedisServer, name: str) -> None:
    told = await refusal_of(redis.url.replace("//", "//nobody:s3cret@"), name)
    assert "does not let this service in" in told and "s3cret" not in told


@contextlib.asynccontextmanager
async def saying(reply: bytes, certificate: Path | None = None) -> AsyncIterator[int]:
    """A server that answers everything with `reply`, over TLS with a certificate; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                writer.write(reply)
        writer.close()

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", folder / "key", "-out", folder / "cert",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return both


async def test_tls_where_there_is_none_and_the_other_way_round(redis: RedisServer, certificate: Path) -> None:
    assert "begins with redis://" in await refusal_of(redis.url.replace("redis:", "rediss:"), "store")
    async with saying(b"+PONG\r\n", certificate) as port:
        assert "begins with rediss://" in await refusal_of(f"redis://127.0.0.1:{port}/0", "store")
        assert "certificate" in await refusal_of(f"rediss://127.0.0.1:{port}/0", "store")
        assert "does not exist" in await refusal_of(f"rediss://127.0.0.1:{port}?ssl_ca_certs=none.pem", "store")
        trusted = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
        async with running(store=trusted, store_timeout_ms=10_000, redis_timeout_ms=1000) as anyo:
            assert anyo.metric("anyo_store_up", op="read") == 1


async def test_what_is_no_redis_stops_the_start() -> None:
    async with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert "is no Redis" in await refusal_of(f"redis://127.0.0.1:{port}/0", "store")


@pytest.mark.parametrize("reply", [b"-LOADING Redis is loading\r\n", b"-MASTERDOWN Link down\r\n", b"-BUSY script\r\n"])
async def test_a_redis_that_is_not_ready_yet_is_waited_for(reply: bytes) -> None:
    async with (
        saying(reply) as port,
        running(store=f"redis://127.0.0.1:{port}", cache=f"redis://127.0.0.1:{port}") as anyo,
    ):
        assert (await anyo.client.get("/readyz")).status_code == 200
        assert [anyo.metric("anyo_store_up", op=op) for op in ("read", "write", "list")] == [0, 0, 0]
        assert [anyo.metric("anyo_cache_up", op=op) for op in ("read", "write")] == [0, 0]


@pytest.mark.parametrize(
    "url",
    [f"redis://127.0.0.1:{free_port()}", "redis://no-such-host.invalid", "unix:///none.sock"],
    ids=["closed port", "unknown host", "no socket"],  # the same in every process that runs tests
)
async def test_a_redis_that_is_away_is_waited_for(url: str) -> None:
    async with running(store=url, store_timeout_ms=10_000, redis_timeout_ms=1000) as anyo:
        assert (await anyo.client.get("/readyz")).status_code == 200
        assert (await anyo.recommend(history=[item_id(1)])).status_code == 200


async def test_a_new_file_of_histories_is_for_its_owner_alone_and_one_that_is_there_keeps_its_mode(
    tmp_path: Path,
) -> None:
    before = os.umask(0o022)
    try:
        for name, mode in (("new.sqlite", 0o600), ("shared.sqlite", 0o660)):
            path = tmp_path / name
            if mode != 0o600:
                path.touch()
                path.chmod(mode)
            store = SqliteStore(str(path), keep=5)
            await store.open()
            await store.append("u", [Event("item", 1.0)])
            files = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.glob(f"{name}*")}
            await store.close()
            assert len(files) >= 2 and set(files.values()) == {mode}, files
    finally:
        os.umask(before)


async def test_a_store_in_memory_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for store in (SqliteStore(":memory:", keep=5), SqliteItemStore(":memory:")):
        await store.open()
        await store.close()
    assert not list(tmp_path.iterdir())
