"""An index whose candidates an engine finds gives what brute force gives. The engine here is the embedded one."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from index import Catalog, FlatIndex
from index.filters.language import CATEGORIES, Condition, Filter, every, matches, some, typed
from index.filters.stored import attributes_text
from index.live_index import LiveIndex
from index.qdrant import filling, searching
from index.qdrant.engine import Address, Engine, Report, connect
from index.qdrant.filling import Held
from index.qdrant.payload import Payload
from index.qdrant.searching import QdrantIndex, SearchOptions
from index.unavailable import SearchUnavailable

N, D = 300, 6
MEMORY = Address(":memory:")
EXACT = SearchOptions(exact=True)


def table(seed: int = 0) -> np.ndarray:
    """Small integers: every product is exact in float32, and ties are plenty."""
    return np.random.default_rng(seed).integers(-3, 4, (N, D)).astype(np.float32)


def catalog() -> Catalog:
    """Attributes of all types, some missing, one of two types, one whose name no path could hold."""
    rng = np.random.default_rng(5)
    texts = []
    for row in range(N):
        found: dict[str, Any] = {"price": float(row % 50), "sold": bool(row % 3)}
        found |= {'it\'s "odd" [0].': ("red", "blue") if row % 4 else ("red",)} if row % 5 else {}
        found |= {"mixed": (str(row % 7), row % 7, row % 2 == 0)[row % 3]}
        found |= {"rare": "x"} if row == 77 else {}
        texts.append(attributes_text(found))
    categories = tuple(tuple(f"c{each}" for each in rng.integers(0, 6, row % 3)) for row in range(N))
    ids = tuple(f"i{row}" for row in range(N))
    return Catalog(ids, ids, categories, np.arange(N), "train", tuple(texts))


CATALOG = catalog()


def held(name: str = "anyo-index-a", vectors: np.ndarray | None = None) -> Held:
    return Held(name, FlatIndex.build(table() if vectors is None else vectors), Payload(CATALOG))


@contextmanager
def engines(count: int = 1, client: QdrantClient | None = None) -> Iterator[list[Engine]]:
    """Replicas that share one engine."""
    shared = client or connect(MEMORY)
    opened = [Engine(MEMORY, client=shared) for _ in range(count)]
    try:
        yield opened
    finally:
        for engine in opened:
            engine.close()


@pytest.fixture(autouse=True)
def narrow_filters_are_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "NARROW_ROWS", 0)


@pytest.fixture(scope="module")
def filled() -> Iterator[tuple[Engine, Held]]:
    with engines() as (engine,):
        engine.open(found := held(), 30)
        yield engine, found


def brute(vectors: np.ndarray, query_D: np.ndarray, k: int, rows: set[int]) -> list[int]:
    scores = vectors @ query_D
    return sorted(rows, key=lambda row: (-scores[row], row))[:k]


def is_any(name: str, *values: Any) -> Condition:
    return Condition(name, any_of=tuple(map(typed, values)))


ODD = 'it\'s "odd" [0].'
FILTERS: dict[str, Filter] = {
    "one item": is_any("rare", "x"),
    "few": every([Condition("price", at_least=10, below=12), is_any("sold", True)]),
    "a list": Condition(ODD, all_of=(typed("red"), typed("blue"))),
    "a type": is_any("mixed", "3"),
    "a number of it": is_any("mixed", 3),
    "a boolean of it": is_any("mixed", True, "no"),
    "none": Condition(ODD, none_of=(typed("blue"),)),
    "bounds": Condition("price", above=5, at_most=44.5),
    "categories": is_any(CATEGORIES, "c1", "c2"),
    "either": some([is_any("price", 1, 2, 3), every([is_any("sold", False), Condition("price", above=40)])]),
    "all but one": Condition("rare", none_of=(typed("x"),)),
    "no such type": some([is_any("price", "3"), is_any("sold", True)]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_pushed_down_and_gives_what_brute_force_gives(
    name: str, filled: tuple[Engine, Held], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, collection = filled
    asked: list[models.QueryRequest] = []
    search = engine.search
    monkeypatch.setattr(engine, "search", lambda of, requests: asked.extend(requests) or search(of, requests))
    wanted, vectors, rng = FILTERS[name], table(), np.random.default_rng(1)
    allowed = CATALOG.table.rows(wanted)
    assert allowed.tolist() == [
        row for row in range(N) if matches(wanted, CATALOG.attributes(row), CATALOG.categories[row])
    ]
    index = QdrantIndex(engine, collection, EXACT)
    queries = rng.integers(-3, 4, (5, D)).astype(np.float32)
    exclude = [rng.choice(N, size, replace=False) for size in (0, 3, 64, 65, 200)]
    k = max(1, len(allowed) // 5)
    scores_BK, rows_BK = index.search(queries, k, exclude, allowed, wanted)
    for query_D, taken, scores_K, rows_K in zip(queries, exclude, scores_BK, rows_BK, strict=True):
        expected = brute(vectors, query_D, k, set(allowed.tolist()) - set(taken.tolist()))
        assert rows_K.tolist() == expected + [-1] * (k - len(expected))
        assert scores_K[: len(expected)].tolist() == [float(vectors[row] @ query_D) for row in expected]
    if len(allowed) > 4 * k:  # else the vectors are read here
        assert asked and all(request.filter is not None for request in asked)
        # What the engine finds by the condition alone is what passes: nothing is left to be dropped here.
        condition = collection.payload.condition(wanted)
        alone = models.QueryRequest(query=queries[0].tolist(), filter=condition, limit=N)
        assert sorted(search(collection.name, [alone])[0].tolist()) == allowed.tolist()


def test_ties_beyond_the_candidates_are_found(filled: tuple[Engine, Held]) -> None:
    with engines() as (engine,):
        same = held("anyo-index-same", np.ones((N, D), np.float32))
        engine.open(same, 30)
        _, rows = QdrantIndex(engine, same, EXACT).search(np.ones((2, D), np.float32), 5, [np.array([1]), np.arange(9)])
    assert rows.tolist() == [[0, 2, 3, 4, 5], [9, 10, 11, 12, 13]]


def test_changed_and_hidden_items_are_exact_over_an_engine(filled: tuple[Engine, Held]) -> None:
    engine, collection = filled
    rng = np.random.default_rng(9)
    vectors = table()
    live, now = LiveIndex(QdrantIndex(engine, collection, EXACT)), dict(enumerate(vectors))
    for number in range(1, 120):
        row = int(rng.choice([*now]))
        vector_D = rng.integers(-3, 4, D).astype(np.float32)
        live = live.changed([(N + number, vector_D)], [row])
        now.pop(row, None)
        now[N + number] = vector_D
    queries = rng.integers(-3, 4, (4, D)).astype(np.float32)
    _, rows_BK = live.search(queries, 30)
    for query_D, rows_K in zip(queries, rows_BK, strict=True):
        expected = sorted(now, key=lambda row: (-float(now[row] @ query_D), row))[:30]
        assert rows_K.tolist() == expected


def test_an_engine_that_names_closed_items_does_not_get_them_shown(filled: tuple[Engine, Held]) -> None:
    _, collection = filled
    query = np.array([[1, 1, 0, 0, 0, 0]], np.float32)
    best, *others = brute(table(), query[0], N, set(range(N)))
    allowed = np.array(others)

    def index(answer: Callable[[int], list[int]]) -> QdrantIndex:
        def search(name: str, requests: list[models.QueryRequest]) -> list[np.ndarray]:
            return [np.array(answer(request.limit or 0), np.int64) for request in requests]

        return QdrantIndex(SimpleNamespace(search=search, away=None, address=MEMORY), collection, SearchOptions())  # type: ignore[arg-type]

    expected = others[:8]
    for wrong in (
        lambda limit: [best, 5, 7],
        lambda limit: [],
        lambda limit: [N],
        lambda limit: [3, 3],
        lambda limit: [-1],
    ):
        _, rows = index(wrong).search(query, 8, allowed=allowed)  # type: ignore[arg-type]
        assert rows[0].tolist() == expected
    _, rows = index(lambda limit: [best, *others[3:]][:limit]).search(query, 8, allowed=allowed)
    assert rows[0].tolist() == others[3:11]


def test_replicas_fill_a_collection_once() -> None:
    client = connect(MEMORY)
    filled: list[int] = []
    upsert = client.upsert

    def counted(name: str, points: Any, **more: Any) -> Any:
        if isinstance(points, models.Batch):
            filled.extend(points.ids)  # type: ignore[arg-type]
            time.sleep(0.02)
        return upsert(name, points, **more)

    client.upsert = counted  # type: ignore[method-assign]
    with engines(3, client) as replicas, pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "POINTS", 50)
        patch.setattr(filling, "POLL_S", 0.01)
        threads = [threading.Thread(target=engine.open, args=(held(), 30)) for engine in replicas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(filled) == list(range(N))
        for engine in replicas:
            _, rows = QdrantIndex(engine, held(), EXACT).search(table()[:1], 3)
            assert rows[0].tolist() == brute(table(), table()[0], 3, set(range(N)))


def test_who_follows_a_filler_that_died_fills_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "POINTS", 50)
    monkeypatch.setattr(filling, "POLL_S", 0.01)
    monkeypatch.setattr(filling, "STALLED_S", 0.1)
    client = connect(MEMORY)
    with engines(2, client) as (dead, alive):
        refuse_after = filling.refuse_after

        def dies(deadline: float, what: Held, count: int) -> None:
            if count == 150:
                raise RuntimeError("killed")
            refuse_after(deadline, what, count)

        monkeypatch.setattr(filling, "refuse_after", dies)
        with pytest.raises(SearchUnavailable, match=r"fails \(RuntimeError\)"):
            dead.open(held(), 30)
        assert client.count("anyo-index-a").count == 150
        monkeypatch.setattr(filling, "refuse_after", refuse_after)
        alive.open(held(), 30)
        assert client.count("anyo-index-a").count == N


def test_a_collection_goes_when_the_last_replica_has_left_it() -> None:
    client = connect(MEMORY)
    client.create_collection("of-somebody-else", models.VectorParams(size=2, distance=models.Distance.DOT))
    with engines(2, client) as (one, two):
        for engine in (one, two):
            engine.open(held("anyo-index-old"), 30)
        one.open(held("anyo-index-new"), 30)
        one.release("anyo-index-old")
        one.sweep()
        assert client.collection_exists("anyo-index-old")  # the other replica has not swapped yet
        two.open(held("anyo-index-new"), 30)
        two.release("anyo-index-old")
        two.sweep()
        left = {each.name for each in client.get_collections().collections}
        assert left == {"anyo-index-new", "anyo-replicas", "of-somebody-else"}


def test_a_collection_that_was_lost_is_filled_again() -> None:
    client = connect(MEMORY)
    with engines(1, client) as (engine,):
        engine.open(held(), 30)
        client.delete_collection("anyo-index-a")
        index = QdrantIndex(engine, held(), SearchOptions(refuse=True))
        with pytest.raises(SearchUnavailable, match=r"fails|no such collection"):
            index.search(table()[:1], 3)
        assert index.trouble() is not None
        engine.look()
        assert index.trouble() is None and index.search(table()[:1], 3)[1].min() >= 0


def test_a_server_that_is_away_costs_time_and_no_answer(filled: tuple[Engine, Held]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    failed: list[int] = []
    engine = Engine(Address(f"http://127.0.0.1:{port}", "s3cret-key"), Report(failed=lambda detail: failed.append(1)))
    try:
        with pytest.raises(SearchUnavailable, match="does not answer") as away:
            engine.open(held(), 5)
        assert f"127.0.0.1:{port}" in away.value.detail and "127.0.0.1" not in str(away.value)
        assert "s3cret-key" not in away.value.detail + repr(engine.address) + repr(away.value.__cause__)
        fell_back: list[int] = []
        index = QdrantIndex(engine, held(), SearchOptions(), lambda: fell_back.append(1))
        _, rows = index.search(table()[:2], 4)
        assert rows.tolist() == [brute(table(), query_D, 4, set(range(N))) for query_D in table()[:2]]
        assert fell_back == [1] and failed == [1] and index.trouble() is None
        refusing = QdrantIndex(engine, held(), SearchOptions(refuse=True))
        with pytest.raises(SearchUnavailable, match="does not answer"):
            refusing.search(table()[:2], 4)
        assert "does not answer" in (refusing.trouble() or "")
    finally:
        engine.close()


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """An HTTP server that answers every request alike, and keeps what it was sent."""
    state: dict[str, Any] = {"status": 200, "body": b"{}", "wait": 0.0, "headers": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            state["headers"].append(dict(self.headers))
            time.sleep(state["wait"])
            self.send_response(state["status"])
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(state["body"])))
            self.end_headers()
            self.wfile.write(state["body"])

        do_GET = do_PUT = do_POST

        def log_message(self, *_: Any) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}", state
    listening.shutdown()
    listening.server_close()
    thread.join()


def test_searches_over_http_are_bounded_and_carry_the_key(server: tuple[str, dict[str, Any]]) -> None:
    url, state = server
    engine = Engine(Address(url, "s3cret-key", timeout_s=0.2))
    request = models.QueryRequest(query=[0.0] * D, limit=3)
    try:
        points = (
            b'{"result": [{"points": [{"id": 7, "version": 1, "score": 2.0}, {"id": 2, "version": 1, "score": 1}]}]}'
        )
        state["body"] = points
        assert [rows.tolist() for rows in engine.search("c", [request])] == [[7, 2]] and engine.away is None
        assert state["headers"][0]["api-key"] == "s3cret-key"
        state["wait"] = 2.0
        started = time.monotonic()
        with pytest.raises(SearchUnavailable, match=r"does not answer \(ReadTimeout"):
            engine.search("c", [request])
        with pytest.raises(SearchUnavailable, match="ReadTimeout"):  # at once, without asking
            engine.search("c", [request])
        assert time.monotonic() - started < 1.5 and engine.away is not None
        for status, body, said in (
            (500, b"oops", "500"),
            (401, b"no", "401"),
            (200, b"[]", "answer"),
            (404, b"", "no such"),
        ):
            engine._not_before, state["wait"], state["status"], state["body"] = 0.0, 0.0, status, body
            with pytest.raises(SearchUnavailable, match=said):
                engine.search("c", [request])
        state["status"], state["body"] = 200, b'{"result": {"collections": []}, "title": "q", "version": "1.16.2"}'
        with pytest.raises(SearchUnavailable, match=r"Qdrant 1.16.2; 1.17 or later"):
            engine.open(held(), 5)
    finally:
        engine.close()
