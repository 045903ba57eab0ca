"""benchmarks.serving.compare: what decides whether a figure may be printed, and what a latency counts from."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.lib.agreement import disagreement, lowest_cosine, read_items, refuse_unless_same
from benchmarks.lib.load import Load, Pool, open_loop, request
from benchmarks.lib.plot import latency_plot
from benchmarks.lib.process_tree import ProcessTree
from benchmarks.serving.load_runs import figures, histories
from benchmarks.serving.report import Results

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
STALL_S = 0.5


@pytest.mark.parametrize(
    ("answer", "seen", "differs"),
    [
        ([(0, 0.9), (1, 0.8)], [], ""),
        ([(1, 0.8), (2, 0.7)], [0], ""),
        ([(0, 0.9), (1, 0.8)], [0], "an item of the history"),
        ([(0, 0.9), (2, 0.7)], [], "left out"),
        ([(0, 0.9), (1, 0.81)], [], "a score differs"),
        ([(1, 0.8), (0, 0.9)], [], "do not come first"),
        ([(0, 0.9)], [], "1 different items"),
        ([(0, 0.9), (0, 0.9)], [], "1 different items"),
        ([(0, float("nan")), (1, 0.8)], [], "a score differs"),
    ],
)
def test_an_answer_that_is_another_is_seen(answer: list[tuple[int, float]], seen: list[int], differs: str) -> None:
    found = disagreement(answer, SCORES, seen, 2, 1e-3)
    assert differs in found
    assert bool(found) == bool(differs)


def test_items_with_nearly_equal_scores_may_change_places() -> None:
    scores = np.array([0.9, 0.8, 0.8001, 0.1], np.float32)
    assert disagreement([(0, 0.9), (1, 0.8)], scores, [], 2, 1e-3) == ""
    assert disagreement([(0, 0.9), (1, 0.8), (2, 0.8001)], scores, [], 3, 1e-3) == ""


def test_one_wrong_answer_stops_everything_and_names_whose_it_was() -> None:
    refuse_unless_same({"a": ["", ""], "b": []})
    with pytest.raises(SystemExit, match=r"(?s)no figures.*b: 1 answers differ.*a score differs"):
        refuse_unless_same({"a": [""], "b": ["", "a score differs"]})


def test_the_lowest_cosine_is_of_the_worst_pair() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert lowest_cosine(2 * vectors, vectors) == pytest.approx(1)
    assert lowest_cosine(vectors, vectors[[0, 2, 1]]) == 0


def test_answers_are_read_in_both_forms() -> None:
    items = {"items": [{"item_id": "b", "score": 0.5, "title": "B"}]}
    assert read_items(items, {"b": 1}) == read_items([items], {"b": 1}) == [(1, 0.5)]


class Stalling(asyncio.Protocol):
    """Blocks the whole server in its first request, as a long forward would."""

    stalled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not Stalling.stalled:
            Stalling.stalled = True
            time.sleep(STALL_S)
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


async def test_latency_counts_from_the_time_a_request_was_due() -> None:
    """Generator and server share one loop here, so a stall delays the sending too: it must not hide the delay."""
    Stalling.stalled = False
    server = await asyncio.get_running_loop().create_server(Stalling, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(f"http://127.0.0.1:{port}")

    def asked() -> Iterator[bytes]:
        while True:
            yield request(f"127.0.0.1:{port}", "/", b"", method="GET")

    load = await open_loop(pool, asked(), rate=100, seconds=1, rng=random.Random(0))
    pool.close()
    server.close()
    await asyncio.sleep(0.1)  # until both ends have seen it
    late = [answer for answer in load.answers if answer.late > 0.1]
    assert late, "requests were due while nothing could be sent"
    assert all(answer.seconds >= answer.late for answer in late)
    row = figures(load, cpu_s=1.0)
    assert row["p99_ms"] > 1000 * STALL_S / 2
    assert row["cpu_ms"] == pytest.approx(1000 / len(load.answers))


class Chunked(asyncio.Protocol):
    """Answers in chunks, as Ray Serve does, a piece at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        pieces = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\n[10", b"]\r\n0\r\n", b"\r\n")
        for number, piece in enumerate(pieces):
            asyncio.get_running_loop().call_later(0.02 * number, self._transport.write, piece)


async def test_an_answer_in_chunks_ends_with_the_last_of_them() -> None:
    server = await asyncio.get_running_loop().create_server(Chunked, "127.0.0.1", 0)
    pool = Pool(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    started = time.monotonic()
    assert [await pool.send(b"GET / HTTP/1.1\r\n\r\n") for _ in range(3)] == [200, 200, 200]
    assert time.monotonic() - started > 3 * 0.05
    pool.close()
    server.close()
    await asyncio.sleep(0.1)


def test_a_load_without_answers_has_no_percentiles() -> None:
    assert figures(Load(), 0.0)["p99_ms"] is None


def test_histories_are_the_same_for_every_system_and_different_from_each_other() -> None:
    items = [str(number) for number in range(100)]
    some = [tuple(next(source)) for source in (histories(items, "a"), histories(items, "a"), histories(items, "b"))]
    assert some[0] == some[1] != some[2]
    assert len(set(some[0])) == len(some[0])


def test_a_tree_is_measured_and_ended_to_the_last_process(tmp_path: Path) -> None:
    """The child makes a session of its own and ignores SIGTERM, as a worker may."""
    child = (
        "import os, pathlib, signal, time\n"
        "os.setsid()\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "begun = time.process_time()\n"
        "while time.process_time() - begun < .3: pass\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(600)"
    )
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    with ProcessTree([sys.executable, "-c", parent], cwd=tmp_path, variables=dict(os.environ)) as tree:
        deadline = time.monotonic() + 60
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline, tree.log()
            time.sleep(0.05)
        process = psutil.Process(int((tmp_path / "pid").read_text()))
        assert tree.cpu_s() >= 0.3
        assert tree.memory_mib()["rss"] > tree.memory_mib()["pss"] > 0
    assert not process.is_running()


def test_medians_of_rounds() -> None:
    results = Results()
    for per_s in (1.0, 9.0, 2.0):
        results.add("a", "closed 1", {"requests": 3, "statuses": {"200": 3}, "per_s": per_s, "p99_ms": None})
    row = results.medians("a")["closed 1"]
    assert (row["per_s"], row["per_s_lowest"], row["per_s_highest"]) == (2, 1, 9)
    assert (row["requests"], row["statuses"], row["p99_ms"]) == (9, {"200": 9}, None)
    assert results.capacity("a") == 2


def test_the_plot_is_a_picture_of_every_system() -> None:
    drawn = latency_plot("a < b", {"one": [(1.0, 10.0), (2.0, 900.0)], "two & three": [(1.5, 20.0)]})
    assert drawn.count("<polyline") == 2
    assert "two &amp; three" in drawn
    assert "a &lt; b" in drawn
