"""Keys, rates, foreign pages, headers: who gets in, and that nothing is done for who does not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from service.errors import Overloaded
from service.http.app import create_app
from service.http.auth import Authorization, Keys, LoopLagClock, TokenBuckets
from service.http.errors import RateLimited, status_of
from service.http.routing import Routes
from service.keys import new_key
from service.settings.addresses import is_loopback
from testing.fake_parts import item_id
from testing.running import ROOT, Process, process, running

OPEN_PATHS = {"/", "/docs", "/livez", "/readyz", "/metrics", "/openapi.json"}
KEY, SECOND, ADMIN = "shop-key", "other-key", "admin-key"


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


KEYS = {"api_keys": (f"shop:{digest(KEY)}", digest(SECOND)), "admin_keys": (f"ops:{digest(ADMIN)}",)}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def every_operation(app: Any) -> list[tuple[str, str]]:
    paths = app.openapi()["paths"]
    return [(path, method.upper()) for path, item in paths.items() for method in item]


async def test_every_endpoint_but_the_open_ones_asks_for_a_key() -> None:
    """Walks the description, so that an endpoint added later is closed too."""
    async with running(**KEYS) as anyo:
        for path, method in every_operation(create_app(anyo.service)):
            answer = await anyo.client.request(method, path.replace("{", "").replace("}", ""), content=b"not read")
            if path in OPEN_PATHS:
                assert answer.status_code == 200, path
                continue
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), path
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/", "/openapi.json", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"):
            assert (await anyo.client.get(path)).status_code == 200
        assert (await anyo.client.get("/no/such/path")).status_code == 401
        assert anyo.metric("anyo_requests_total", endpoint="/recommend", recipe="none", status="401") == 1


async def test_a_key_is_taken_from_either_header_and_a_wrong_one_is_refused() -> None:
    async with running(**KEYS) as anyo:
        for headers, status in (
            (bearer(KEY), 200),
            ({"authorization": f"bearer  {SECOND} "}, 200),
            ({"x-api-key": KEY}, 200),
            ({"authorization": "Basic Zm9v", "x-api-key": KEY}, 200),
            (bearer("shop-keX"), 401),
            (bearer(""), 401),
            ({"x-api-key": digest(KEY)}, 401),
            ({"authorization": KEY}, 401),
        ):
            answer = await anyo.client.post("/recommend", json={"history": [item_id(1)]}, headers=headers)
            assert answer.status_code == status, headers
        assert "not known" in (await anyo.client.get("/items", headers=bearer("x"))).json()["error"]["message"]


async def test_admin_keys_open_the_admin_endpoints_and_nothing_else() -> None:
    async with running(**KEYS) as anyo:
        post, put = anyo.client.post, anyo.client.put
        for path in ("/artifacts/fake/activate", "/artifacts/fake/load", "/artifacts/other/unload"):
            assert (await post(path)).status_code == 401
            assert (await post(path, headers=bearer(KEY))).status_code == 403
            assert (await post(path, headers=bearer(ADMIN))).status_code in (200, 404)
        assert (await put("/traffic", json={}, headers=bearer(KEY))).status_code == 403
        assert (await put("/traffic", json={}, headers=bearer(ADMIN))).status_code == 200
        for path in ("/artifacts", "/traffic", "/items"):
            refused = await anyo.client.get(path, headers=bearer(ADMIN))
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "forbidden")
            assert (await anyo.client.get(path, headers=bearer(KEY))).status_code == 200


@pytest.mark.parametrize("given", [{"api_keys": KEYS["api_keys"]}, {"host": "0.0.0.0"}], ids=["keys", "address"])
async def test_without_admin_keys_the_admin_endpoints_are_closed_to_the_world(given: Any) -> None:
    async with running(**given) as anyo:
        assert anyo.service.start_key is None
        for headers in ({}, bearer(KEY), bearer(ADMIN)):
            answer = await anyo.client.post("/artifacts/fake/activate", headers=headers)
            assert answer.status_code == 403 and "ANYO_ADMIN_KEYS" in answer.json()["error"]["message"]


async def test_without_any_key_each_start_makes_an_admin_key_of_its_own() -> None:
    async with running() as anyo, running() as other:
        key, post = anyo.service.start_key, anyo.client.post
        assert key is not None and key != other.service.start_key
        for sent, status in ((key, 200), (other.service.start_key or "", 401), ("", 401)):
            answer = await post("/artifacts/fake/activate", headers={"x-api-key": sent})
            assert answer.status_code == status
        assert (await anyo.client.get("/items")).status_code == 200, "the rest of the API asks for none"
        assert key not in repr(anyo.service.settings) and key not in (await anyo.client.get("/artifacts")).text
    async with running(admin_keys=KEYS["admin_keys"]) as anyo:
        assert anyo.service.start_key is None


def test_keys_that_nearly_match_do_not() -> None:
    keys = Keys(KEYS["api_keys"])
    assert keys.name_of(KEY.encode()) == "shop" and keys.name_of(SECOND.encode()) == "key 2"
    assert [keys.name_of(other) for other in (None, b"", b"shop-ke", b"shop-key ", b"\xff\xfe")] == [None] * 5
    key, known = new_key()
    assert Keys([known]).name_of(key.encode()) and len(key) > 40 and new_key()[0] != key


def test_without_keys_a_refusal_speaks_of_no_key() -> None:
    for key, says in (("a", "with this key"), (None, "from all clients together")):
        buckets = TokenBuckets(1.0, 1)
        buckets.take(key)
        with pytest.raises(RateLimited, match=says):
            buckets.take(key)


def test_a_bucket_refills_with_time_and_never_beyond_its_size() -> None:
    now = 100.0
    buckets = TokenBuckets(2.0, 3, lambda: now)
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(RateLimited) as refused:
        buckets.take("a")
    assert refused.value.retry_after == 1
    buckets.take("b")  # another key has a bucket of its own
    now += 0.5
    buckets.take("a")
    with pytest.raises(RateLimited):
        buckets.take("a")
    now += 1000
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(RateLimited):
        buckets.take("a")
    slow = TokenBuckets(0.1, 1, lambda: now)
    slow.take("a")
    with pytest.raises(RateLimited) as refused:
        slow.take("a")
    assert refused.value.retry_after == 10


async def test_a_key_that_sends_too_fast_gets_429_and_others_go_on() -> None:
    async with running(**KEYS, rate_limit=0.001, rate_limit_burst=2) as anyo:

        async def ask(key: str) -> httpx.Response:
            return await anyo.client.get("/items", headers=bearer(key))

        assert [(await ask(KEY)).status_code for _ in range(3)] == [200, 200, 429]
        refused = await ask(KEY)
        assert refused.json()["error"]["code"] == "rate_limited" and int(refused.headers["retry-after"]) > 100
        assert (await ask(SECOND)).status_code == 200
        assert (await anyo.client.get("/readyz")).status_code == 200, "probes are not counted"
        assert anyo.metric("anyo_rejected_total", reason="rate_limited") == 2
    async with running(rate_limit=0.001, rate_limit_burst=1) as anyo:
        statuses = [(await anyo.client.get("/items")).status_code for _ in range(2)]
        assert statuses == [200, 429], "without keys everyone shares one bucket"


async def test_what_the_event_loop_cannot_read_in_time_is_refused_unread_but_probes_and_admins_get_in() -> None:
    delay = 0.0
    async with running(admin_keys=KEYS["admin_keys"]) as anyo:
        passed: list[str] = []

        async def app(scope: Any, *_: Any) -> None:
            passed.append(scope["path"])

        routes = Routes(create_app(anyo.service).state.routes)
        settings, metrics = anyo.service.settings, anyo.service.metrics
        gate = Authorization(app, settings=settings, metrics=metrics, routes=routes, loop_delay=lambda: delay)

        async def ask(method: str, path: str) -> None:
            headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"x-api-key", ADMIN.encode())]
            scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": headers}
            await gate(scope, None, None)  # type: ignore[arg-type]

        await ask("POST", "/recommend")
        delay = 0.11
        with pytest.raises(Overloaded) as refused:
            await ask("POST", "/recommend")
        assert status_of(refused.value) == 429 and refused.value.retry_after == 1
        for method, path in (("GET", "/readyz"), ("GET", "/metrics"), ("POST", "/artifacts/fake/activate")):
            await ask(method, path)
        assert passed == ["/recommend", "/readyz", "/metrics", "/artifacts/fake/activate"]
        assert anyo.metric("anyo_rejected_total", reason="loop_behind") == 1


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_second_long_turn_in_a_row_is_told_from_a_first(loop: Any) -> None:
    clock, delays = LoopLagClock(), []

    async def request(work_s: float) -> None:
        delays.append(clock())
        time.sleep(work_s)

    async def turns() -> None:
        await asyncio.gather(*(request(0.05) for _ in range(3)))  # all ready at once: one turn, maybe only a pause
        await asyncio.gather(*(request(0.05) for _ in range(3)))
        await asyncio.sleep(0.01)
        await request(0.0)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(turns())
    assert delays[:3] == [0, 0, 0]
    assert delays[3] < 0.04 and delays[4] >= 0.05 and delays[5] >= 0.1
    assert delays[6] < 0.04


async def test_every_answer_carries_the_security_headers_once() -> None:
    async with running(**KEYS) as anyo:
        for path in ("/items", "/nope", "/livez", "/metrics", "/"):
            headers = (await anyo.client.get(path, headers=bearer(KEY))).headers
            for name in ("x-content-type-options", "x-frame-options", "content-security-policy", "cache-control"):
                assert len(headers.get_list(name)) == 1, (path, name)
            assert "access-control-allow-origin" not in headers
        assert "script-src" in (await anyo.client.get("/")).headers["content-security-policy"]


async def test_pages_of_configured_origins_may_call_and_no_others() -> None:
    shop = "https://shop.example"
    async with running(**KEYS, cors_origins=(shop,)) as anyo:
        asks = {"origin": shop, "access-control-request-method": "POST"}
        preflight = await anyo.client.options("/recommend", headers=asks)
        assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == shop
        assert "x-api-key" in preflight.headers["access-control-allow-headers"]
        answer = await anyo.client.get("/items", headers={"origin": shop, **bearer(KEY)})
        assert answer.headers["access-control-allow-origin"] == shop and answer.headers["vary"] == "Origin"
        refused = await anyo.client.get("/items", headers={"origin": shop})
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == shop
        for origin in ("https://evil.example", "https://shop.example.evil.example", "null"):
            assert (await anyo.client.options("/recommend", headers={**asks, "origin": origin})).status_code == 401
            other = await anyo.client.get("/items", headers={"origin": origin, **bearer(KEY)})
            assert "access-control-allow-origin" not in other.headers
    async with running() as anyo:
        assert (await anyo.client.options("/recommend", headers=asks)).status_code == 405


def test_loopback_names_and_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "shop.example", "localhost.evil.example", "")))


async def test_a_refused_request_is_not_read_and_reaches_nothing() -> None:
    async with running(**KEYS) as anyo:

        async def receive() -> Any:
            raise AssertionError("the body was read")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/recommend", "raw_path": b"/recommend", "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"999")],
        }  # fmt: skip
        await create_app(anyo.service)(scope, receive, send)
        assert sent[0]["status"] == 401 and anyo.encoder.batches == []


async def test_an_error_inside_says_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as anyo:

        def explode(*_: object) -> None:
            raise RuntimeError("secret detail of /srv/anyo")

        monkeypatch.setattr(anyo.service.feedback, "remember", explode)
        answer = await anyo.recommend(history=[item_id(1)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        anyo.encoder.fatal = 13
        dead = await anyo.recommend(history=[item_id(13)])
        assert dead.status_code == 503
        for text in (answer.text, dead.text, (await anyo.client.get("/readyz")).text):
            assert "secret" not in text and "SystemExit" not in text and "told to die" not in text


def test_a_key_set_in_place_of_its_hash_is_refused_without_being_shown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "nowhere"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={"PATH": "", "ANYO_API_KEYS": "anyo_this-is-the-key-itself"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "ANYO_API_KEYS" in done.stderr and "itself" not in done.stderr


def exchange(server: Process, *pieces: bytes) -> bytes:
    """Send bytes over a connection of its own; return all that comes back until it is closed."""
    address = urlsplit(server.url)
    received = b""
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as client:
        try:
            for piece in pieces:
                client.sendall(piece)
            while block := client.recv(65_536):
                received += block
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


def test_heads_without_end_and_bytes_that_are_no_request_are_refused(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        line = b"GET /items HTTP/1.1\r\nhost: localhost\r\n"
        endless = {
            "one header": [line + b"x-a: ", *[b"a" * 16_384] * 64],
            "many headers": [line, *[b"x-a: 1\r\n" * 2000] * 64],
            "a line": [b"GET /", *[b"a" * 16_384] * 64],
        }
        for name, pieces in endless.items():
            answer = exchange(server, *pieces)
            if answer:  # the connection may be reset before the answer is read
                assert answer.startswith(b"HTTP/1.1 431") and b"head_too_large" in answer, name
        nonsense = exchange(server, b"\x16\x03\x01\x02\x00 hello\r\n\r\n")
        assert nonsense.startswith(b"HTTP/1.1 400")
        assert json.loads(nonsense.partition(b"\r\n\r\n")[2])["error"]["code"] == "bad_request"
        body = json.dumps({"history": [item_id(1)]}).encode().ljust(600_000)
        request = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        request += f"content-length: {len(body)}\r\nx-long: {'a' * 30_000}\r\n\r\n".encode() + body
        closing = request.replace(b"host: localhost", b"host: localhost\r\nconnection: close", 1)
        answers = exchange(server, request + closing)
        assert answers.count(b"HTTP/1.1 200") == 2, "large bodies and two requests in one piece are no endless head"


def test_listening_beyond_this_machine_without_keys_is_warned_of(tmp_path: Path) -> None:
    """The port is only ever opened on this machine here; the setting alone decides."""
    from service.http.server import _serve, serve
    from service.service import Service
    from service.settings import load_settings

    assert asyncio.iscoroutinefunction(_serve)
    with pytest.MonkeyPatch.context() as patch:
        warned: list[str] = []
        patch.setattr("service.http.server.log.warning", lambda message, **_: warned.append(message))
        patch.setattr("service.http.server._listen", lambda host, port: (_ for _ in ()).throw(KeyboardInterrupt))
        for given, expected in (({"host": "0.0.0.0"}, 1), ({}, 1), ({"host": "0.0.0.0", **KEYS}, 1)):
            service = Service(load_settings(store="sqlite:///:memory:", **given))
            with pytest.raises(KeyboardInterrupt):
                serve(service)
            assert len(warned) == expected
