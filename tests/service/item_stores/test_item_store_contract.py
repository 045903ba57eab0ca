"""What every store of items must do: the same tests on SQLite (file and memory) and on a real Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import StartError
from service.item_stores import open_item_store
from service.item_stores.base import ItemContent, ItemStore, ItemWrite, StoredItem
from service.observability.metrics import Metrics
from service.settings import load_settings
from service.settings.store_kinds import kinds
from testing.redis_server import RedisServer, redis_server

STORES = {"file": "sqlite", "memory": "sqlite", "redis": "redis"}
_databases = itertools.count()

FULL = ItemContent(
    "The Sea\nat Night ✓",
    ("mystery", "sea"),
    {"price": 9.5, "pages": 120, "signed": True, "language": "de", "tags": ("a", "b")},
    "hidden",
    (0.5, -1.25),
    "0123456789ab",
)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis"), "--databases", "64") as server:
        yield server


def opened(url: str) -> ItemStore:
    settings = load_settings(store_timeout_ms=10_000, redis_write_timeout_ms=5000)
    return open_item_store(url, settings, Metrics())


@pytest.fixture(params=STORES)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return f"redis://127.0.0.1:{request.getfixturevalue('redis').port}/{next(_databases)}"
    return f"sqlite:///{tmp_path / 'deeper' / 'i.sqlite' if request.param == 'file' else ':memory:'}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[ItemStore]:
    store = opened(url)
    await store.open()
    yield store
    await store.close()


def write(item_id: str, title: str = "x", expected: int | None = None) -> ItemWrite:
    return ItemWrite(item_id, ItemContent(title), expected)


async def test_every_kind_of_store_is_held_to_the_contract() -> None:
    assert set(STORES.values()) == set(kinds())


async def test_a_content_comes_back_as_it_was_written(store: ItemStore) -> None:
    (written,) = await store.write([ItemWrite("a/b'; ✓", FULL)])
    expected = StoredItem("a/b'; ✓", FULL, 1, 1)
    assert (written.item, written.outcome) == (expected, "changed")
    assert await store.get("a/b'; ✓") == expected and await store.get("other") is None
    assert await store.changes(0, 10) == ([expected], 1)


async def test_a_write_that_changes_nothing_is_no_change(store: ItemStore) -> None:
    await store.write([write("a"), write("b")])
    (again,) = await store.write([write("a")])
    assert (again.outcome, again.item.version, again.item.number) == ("same", 1, 1)
    (repeated,) = await store.write([write("a", expected=0)])
    assert repeated.outcome == "same", "the repetition of a write whose answer was lost"
    assert (await store.changes(0, 10)).newest == 2


async def test_a_write_for_another_version_is_refused_and_hurts_no_neighbour(store: ItemStore) -> None:
    await store.write([write("a")])
    found = await store.write([write("b"), write("a", "late", 0), write("a", "next", 1), write("c", "c", 3)])
    assert [one.outcome for one in found] == ["changed", "stale", "changed", "stale"]
    assert [(one.item.version, one.item.content.title) for one in found] == [(1, "x"), (1, "x"), (2, "next"), (0, "")]
    assert await store.get("c") is None


async def test_changes_are_read_in_order_and_in_parts(store: ItemStore) -> None:
    await store.write([write(name) for name in "abcd"])
    await store.write([write("b", "again")])
    await store.write([ItemWrite("c", ItemContent(state="deleted"))])
    seen: list[tuple[str, int]] = []
    while (part := await store.changes(seen[-1][1] if seen else 0, 2)).items:
        seen += [(item.item_id, item.number) for item in part.items]
        assert part.newest == 6
    assert seen == [("a", 1), ("d", 4), ("b", 5), ("c", 6)]


async def test_of_writers_that_expect_the_same_version_one_wins(store: ItemStore) -> None:
    found = await asyncio.gather(*(store.write([write("a", f"t{number}", 0)]) for number in range(20)))
    outcomes = [one.outcome for (one,) in found]
    assert sorted(outcomes) == ["changed"] + ["stale"] * 19
    winner = found[outcomes.index("changed")][0].item
    assert await store.get("a") == winner


async def test_what_was_written_outlives_the_store_and_is_seen_by_others(store: ItemStore, url: str) -> None:
    await store.write([write("a"), ItemWrite("b", FULL)])
    if url.endswith(":memory:"):
        return
    other = opened(url)
    await other.open()
    try:
        assert await other.changes(0, 10) == await store.changes(0, 10)
        (written,) = await other.write([ItemWrite("b", replace(FULL, state="live"), 1)])
        assert (await store.changes(2, 10)).items == [written.item]
    finally:
        await other.close()


async def test_what_is_no_item_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="known are sqlite"):
        opened("mysql://somewhere")
    (tmp_path / "not.sqlite").write_text("something else entirely, and long enough to be no database header at all")
    with pytest.raises(StartError, match="no SQLite database"):
        await opened(f"sqlite:///{tmp_path / 'not.sqlite'}").open()
