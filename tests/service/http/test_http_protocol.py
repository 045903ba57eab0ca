"""Bytes on a connection: offers of other protocols, framing, heads that are too large."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.http.uvicorn_adapter import MAX_HEAD_BYTES, MAX_PIPELINED
from testing.running import Process, process

BODY = b'{"history":["item-0003"],"k":1}'
TYPE = b"content-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
CHUNKS = b"10\r\n" + BODY[:16] + b"\r\n%x\r\n" % len(BODY[16:]) + BODY[16:] + b"\r\n0\r\n\r\n"
GET = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
OFFERS = {
    "h2c": H2C,
    "h2c and close": H2C.replace(b"Upgrade,", b"Upgrade, close,"),
    "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
    "TLS": b"connection: Upgrade\r\nupgrade: TLS/1.2, HTTP/1.1\r\n",
    "upgrade without connection": b"upgrade: h2c\r\n",
    "TE": b"te: trailers, deflate\r\nconnection: TE\r\n",
    "expectation": b"expect: 100-continue\r\n",
    "h2c and expectation": H2C + b"expect: 100-Continue\r\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("server")) as started:
        yield started


def exchange(server: Process, parts: Sequence[bytes], answers: int = 1) -> bytes:
    """Send parts of bytes with pauses; return what came until so many answers, or the end."""
    address, got = urlsplit(server.url), b""
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=10) as client:
        for number, part in enumerate(parts):
            if number:
                time.sleep(0.02)
            with contextlib.suppress(ConnectionError):
                client.sendall(part)
        with contextlib.suppress(ConnectionError):
            while len(statuses(got)) < answers and (chunk := client.recv(65_536)):
                got += chunk
    return got


def statuses(got: bytes) -> list[int]:
    """Return the statuses of complete answers; 100 is none."""
    found = []
    while head := re.match(rb"HTTP/1\.1 (\d{3})[^\r]*\r\n((?:[^\r]+\r\n)*)\r\n", got):
        got = got[head.end() :]
        if head[1] == b"100":
            continue
        length = re.search(rb"content-length: (\d+)", head[2])
        size = int(length[1]) if length else 0
        if len(got) < size:
            break
        found.append(int(head[1]))
        got = got[size:]
    return found


def post(*headers: bytes, body: bytes = BODY) -> bytes:
    return b"POST /recommend HTTP/1.1\r\nhost: localhost\r\n" + TYPE + b"".join(headers) + b"\r\n" + body


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("framing", [(LENGTH, BODY), (CHUNKED, CHUNKS)], ids=["length", "chunks"])
def test_an_offer_of_something_else_changes_nothing(
    server: Process, offer: bytes, framing: tuple[bytes, bytes]
) -> None:
    header, body = framing
    head = post(offer, header, body=b"")
    whole, closes = head + body, b"close" in offer
    for parts in ([whole], [head, body], [whole[:40], whole[40:-3], whole[-3:]]):
        got = exchange(server, parts)
        assert statuses(got) == [200] and b'"item_id"' in got
    followed = [200] if closes else [200, 200]
    for parts in ([whole + GET], [whole, GET], [head, body + GET]):
        assert statuses(exchange(server, parts, 2)) == followed
    if not closes:
        assert statuses(exchange(server, [whole * 3 + GET], 4)) == [200] * 4


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_an_offer_without_a_body_changes_nothing(server: Process, offer: bytes) -> None:
    get = GET.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n")
    assert statuses(exchange(server, [get])) == [200]


def test_an_expectation_is_met_before_the_body_comes(server: Process) -> None:
    head = post(b"expect: 100-continue\r\n", LENGTH, body=b"")
    address = urlsplit(server.url)
    with socket.create_connection((str(address.hostname), address.port or 0), timeout=10) as client:
        client.sendall(head)
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(BODY)
        assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "framing",
    [LENGTH * 2, LENGTH + b"content-length: 5\r\n", LENGTH + CHUNKED, CHUNKED + LENGTH, b"content-length: +31\r\n",
     b"transfer-encoding: xchunked\r\n", b"content-length: -1\r\n", b"content-length: 0x1f\r\n"],
)  # fmt: skip
def test_two_or_strange_framings_are_refused(server: Process, framing: bytes) -> None:
    for offer in (b"", H2C):
        got = exchange(server, [post(offer, framing) + GET], 2)
        assert statuses(got) == [400] and b'"bad_request"' in got


def test_a_tunnel_is_refused_and_the_connection_ends(server: Process) -> None:
    got = exchange(server, [b"CONNECT example.invalid:443 HTTP/1.1\r\nhost: localhost\r\n\r\n" + GET], 3)
    assert len(statuses(got)) == 1 and 400 <= statuses(got)[0] < 500


@pytest.mark.parametrize("where", ["one header", "many headers", "the line", "behind a body"])
@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_a_head_is_refused_from_its_limit_on_however_it_arrives(server: Process, where: str, pieces: int) -> None:
    def head(size: int) -> bytes:
        start, end = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n", b"\r\n"
        if where == "the line":
            return b"GET /livez?%s HTTP/1.1\r\nhost: localhost\r\n\r\n" % (b"a" * size)
        if where == "many headers":
            return start + b"".join(b"x-%05d: a\r\n" % number for number in range(size // 12)) + end
        return start + b"x-a: " + b"a" * size + b"\r\n" + end

    before = post(LENGTH) if where == "behind a body" else b""
    more = [200] if before else []
    for size, expected in ((MAX_HEAD_BYTES - 200, {200, 422}), (MAX_HEAD_BYTES + 4464, {431}), (200_000, {431})):
        whole = before + head(size)
        step = -(-len(whole) // pieces)
        got = exchange(server, [whole[i : i + step] for i in range(0, len(whole), step)], 1 + len(more))
        assert statuses(got)[: len(more)] == more or expected == {431}
        assert statuses(got)[-1] in expected, (size, got[-300:])


def test_trailers_do_not_become_headers(server: Process) -> None:
    trailers = CHUNKS[:-2] + b"content-type: application/json\r\ncontent-encoding: br\r\n\r\n"
    assert statuses(exchange(server, [post(CHUNKED, body=b""), trailers])) == [200]
    untyped = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\n" + CHUNKED + b"\r\n"
    assert statuses(exchange(server, [untyped, trailers])) == [400]


def test_requests_that_wait_on_one_connection_are_bounded(server: Process) -> None:
    """A client that sends without end and reads nothing gets no answer out of turn, and the others are served."""
    got = exchange(server, [GET * (MAX_PIPELINED + 1)], answers=MAX_PIPELINED + 1)
    assert statuses(got) == [200] * (MAX_PIPELINED + 1)
    got = exchange(server, [GET * 1000], answers=1000)
    assert set(statuses(got)) <= {200} and len(statuses(got)) < 1000
    assert statuses(exchange(server, [GET])) == [200]


def test_a_client_that_leaves_amid_its_requests_is_no_error(tmp_path: Path) -> None:
    request = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\n" + TYPE + LENGTH + b"\r\n" + BODY
    with process(tmp_path, user_cache_entries=0) as started:
        address = urlsplit(started.url)
        for _ in range(20):
            with socket.create_connection((str(address.hostname), address.port or 0), timeout=10) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # leave with a reset
                client.sendall(request * 20)
                client.recv(100)
        assert statuses(exchange(started, [GET])) == [200]
        _, log = started.end()
    assert "unhandled error" not in log and "Traceback" not in log


def test_a_request_has_one_host(server: Process) -> None:
    """RFC 9112, section 3.2: HTTP/1.1 without Host, and two of them in any version, are answered with 400."""
    for path in (b"/livez", b"/items", b"/none"):
        line, host = b"GET " + path, b"host: localhost\r\n"
        got = exchange(server, [line + b" HTTP/1.1\r\n\r\n" + GET], 2)
        assert statuses(got) == [400, 200] and b"has no Host header" in got, "and the connection goes on"
        for version in (b"1.0", b"1.1"):
            twice = exchange(server, [line + b" HTTP/%s\r\n%s%s\r\n" % (version, host, host)])
            assert statuses(twice) == [400] and b"more than one Host header" in twice
    assert statuses(exchange(server, [b"GET /livez HTTP/1.0\r\n\r\n"])) == [200], "HTTP/1.0 may leave it out"
    preflight = b"OPTIONS /recommend HTTP/1.1\r\norigin: https://shop.example\r\naccess-control-request-method: POST"
    assert statuses(exchange(server, [preflight + b"\r\n\r\n"])) == [400]
