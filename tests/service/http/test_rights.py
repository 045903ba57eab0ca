"""Who reaches which handler: every route × spellings of its path × methods × keys × settings × what browsers and
proxies send. Handlers are replaced by ones that note that they ran."""

from __future__ import annotations

import hashlib
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from service.http.app import create_app
from service.http.rights import Right, opened_by, right_of
from service.http.routes import items
from service.service import Service
from service.settings import load_settings
from testing.running import Process, process

KEYS = {"api": "shop-key", "admin": "ops-key", "wrong": "no-such-key"}
API, ADMIN = (hashlib.sha256(KEYS[kind].encode()).hexdigest() for kind in ("api", "admin"))
SETTINGS: dict[str, dict[str, Any]] = {
    "no keys, this machine": {},
    "no keys, every address": {"host": "0.0.0.0"},
    "api keys": {"api_keys": (API,)},
    "admin keys": {"admin_keys": (ADMIN,)},
    "both": {"api_keys": (API,), "admin_keys": (ADMIN,)},
    "both, every address": {"api_keys": (API,), "admin_keys": (ADMIN,), "host": "0.0.0.0"},
}
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

# Written out once more, apart from the code: a route that is not here is one that needs an API key.
PROBES = {"/livez", "/readyz"}
OPEN = {*PROBES, "/", "/metrics", "/openapi.json", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css"}
ADMINS = {
    ("PUT", "/traffic"),
    *(("POST", f"/artifacts/{{name}}/{step}") for step in ("load", "unload", "activate")),
    ("PUT", "/items/{item_id}"),
    ("PATCH", "/items/{item_id}"),
    ("DELETE", "/items/{item_id}"),
    ("POST", "/items"),
}


def letter(path: str, place: int) -> str:
    return f"{path[:place]}%{ord(path[place]):02x}{path[place + 1 :]}"


AFTER = (
    "%0A", "%0a", "%0D", "%0D%0A", "%00", "%09", "%20", "%0B", "%0C", "%1C", "%7F", "%C2%85", "%E2%80%A8", "%E2%80%A9",
    "/", "//", "/.", "/..", "/./", "%2F", "%2f", "%5C", ";", ";x", ";x=1", "%3B", "%3F", "?", "?x=1", "%23", "%",
    "%2", "%zz", "%u000A", "%C0%AF", "%C0%8A", "%FF", "%ED%B0%AF", "%EF%BC%8F", "%E2%80%8B", "%250A", "*", ".json", "+",
)  # fmt: skip
SPELLINGS: tuple[Callable[[str], str], ...] = (
    *(lambda path, end=end: path + end for end in AFTER),  # type: ignore[misc]
    lambda path: "/" + path,
    lambda path: "/." + path,
    lambda path: "/x/.." + path,
    lambda path: "/%2e" + path,
    lambda path: "/livez/.." + path,
    lambda path: "/livez%2F.." + path,
    lambda path: "%2F" + path[1:],
    lambda path: "/%0A" + path[1:],
    lambda path: path.upper(),
    lambda path: path.title(),
    lambda path: path.replace("/", "//"),
    lambda path: path.replace("/", "/%2E/"),
    lambda path: path[:1] + path[1:].replace("/", "%2F"),
    lambda path: path[:1] + path[1:].replace("/", "%5C"),
    lambda path: path.replace("a", "%EF%BD%81"),
    lambda path: path.replace("i", "%C4%B1"),
    lambda path: path.replace("s", "%C5%BF"),
)
# These say the same path as the plain one (RFC 3986, 2.3).
EQUAL: tuple[Callable[[str], str], ...] = (
    lambda path: path,
    lambda path: letter(path, len(path) - 1) if path[-1] != "/" else path,
    lambda path: letter(path, 1) if len(path) > 1 else path,
)


class Ran(NamedTuple):
    """A handler that ran."""

    method: str
    path: str


class Watched:
    """An application whose handlers only note that they ran."""

    def __init__(self, settings: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
        self.service = Service(load_settings(store="sqlite:///:memory:", **settings))
        self.app = create_app(self.service)
        self.settings = self.service.settings
        self.ran: list[Ran] = []
        self.routes = self.app.state.routes
        for route in self.routes:
            endpoint = opened_by(right_of(route))(self._endpoint(route.path_format))
            patch.setattr(route, "endpoint", endpoint)
            patch.setattr(route, "app", self._app(route.path_format))

    def _endpoint(self, path: str) -> Any:
        async def endpoint(request: Any) -> Response:
            self.ran.append(Ran(request.method, path))
            return Response(status_code=204)

        return endpoint

    def _app(self, path: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            self.ran.append(Ran(scope["method"], path))
            await Response(status_code=204)(scope, receive, send)

        return app

    async def ask(self, method: str, target: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, list[Ran]]:
        """Send a request as the server would hand it over; return the status and what ran."""
        raw, _, query = target.partition("?")
        self.ran = []
        statuses: list[int] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {"type": "http", "method": method, "path": unquote(raw), "raw_path": raw.encode("ascii"),
                 "query_string": query.encode(), "headers": headers, "client": ("127.0.0.1", 5)}  # fmt: skip
        await self.app(scope, receive, send)
        return statuses[0], self.ran

    def may(self, caller: str, method: str, path: str) -> bool:
        """Whether a caller has the right to what ran, said by the tables above alone."""
        if (method, path) in ADMINS:
            kinds = {"admin"} if self.settings.admin_keys else {"start"} if self.service.start_key else set()
            return caller in kinds
        return path in OPEN or not self.settings.api_keys or caller == "api"

    def callers(self) -> dict[str, str | None]:
        """The keys to try, by kind."""
        start = {} if self.service.start_key is None else {"start": self.service.start_key}
        return {"none": None, **KEYS, **start}


def headers_of(key: str | None, *more: tuple[bytes, bytes], host: bytes = b"localhost") -> list[tuple[bytes, bytes]]:
    sent = [] if key is None else [(b"x-api-key", key.encode())]
    return [(b"host", host), (b"content-type", b"application/json"), *sent, *more]


def concrete(path: str) -> str:
    return path.replace("{name}", "fake").replace("{user_id}", "u1").replace("{item_id}", "i1")


def all_routes(app: FastAPI) -> Iterator[Any]:
    """Every route of an application, those of included routers too."""
    for route in app.routes:
        yield from getattr(getattr(route, "original_router", None), "routes", [route])


@pytest.fixture(params=SETTINGS, name="watched")
def _watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(SETTINGS[request.param], monkeypatch)


async def test_no_spelling_of_a_path_reaches_a_handler_without_its_right(watched: Watched) -> None:
    assert len(SPELLINGS) + len(EQUAL) > 60
    assert {id(route) for route in all_routes(watched.app)} == set(map(id, watched.routes)), "all routes are looked at"
    reached = set()
    for caller, key in watched.callers().items():
        headers = headers_of(key)
        for path in {route.path_format for route in watched.routes}:
            plain = concrete(path)
            for spell, method in itertools.product((*EQUAL, *SPELLINGS), METHODS):
                status, ran = await watched.ask(method, spell(plain), headers)
                assert status < 500
                for each in ran:
                    assert watched.may(caller, *each), f"{caller} reached {each} by {method} {spell(plain)}: {status}"
                    reached.add((caller, *each))
    for route, (caller, _) in itertools.product(watched.routes, watched.callers().items()):
        for method in route.methods:
            expected = watched.may(caller, method, route.path_format)
            assert ((caller, method, route.path_format) in reached) == expected, (caller, method, route.path_format)


async def test_spellings_with_control_characters_or_wrong_encoding_do_not_exist_for_anyone(watched: Watched) -> None:
    for caller, key in watched.callers().items():
        for path in {concrete(route.path_format) for route in watched.routes}:
            for end in ("%0A", "%0D%0A", "%00", "%7F", "%C2%85", "%E2%80%A8", "%", "%zz", "%C0%AF", "%FF", "%ED%B0%AF"):
                for method in ("GET", "PUT", "POST"):
                    assert await watched.ask(method, path + end, headers_of(key)) == (404, []), (caller, method, path)


FOREIGN_HOSTS = (b"rebound.example", b"rebound.example:8000", b"localhost.evil.example", b"127.0.0.1.evil.example",
                 b"[::1].evil", b"", b"localhost:x", b"2130706433", b"0x7f.1", b"127.1", b"lo calhost", b"\xff",
                 b"user@localhost", b"localhost/", b"localhost#", b"[localhost]x", b"::1:8000")  # fmt: skip
OWN_HOSTS = (b"localhost", b"LOCALHOST:8000", b"localhost.", b"127.0.0.1", b"127.0.0.1:8000", b"127.8.9.1", b"[::1]:80")


async def test_another_host_name_reaches_nothing_but_probes(watched: Watched) -> None:
    for key, route in itertools.product(watched.callers().values(), watched.routes):
        for method, path in itertools.product(route.methods, {route.path_format}):
            for host in FOREIGN_HOSTS:
                status, ran = await watched.ask(method, concrete(path), headers_of(key, host=host))
                assert bool(ran) == (path in PROBES), (host, method, path, status)
            two = headers_of(key, (b"host", b"rebound.example"))
            assert path in PROBES or not (await watched.ask(method, concrete(path), two))[1]
    caller = next(caller for caller in watched.callers() if watched.may(caller, "GET", "/users"))
    key = watched.callers()[caller]
    for host in OWN_HOSTS:
        assert (await watched.ask("GET", "/users", headers_of(key, host=host)))[0] == 204, host
    assert (await watched.ask("GET", "/users", headers_of(key)[1:]))[0] == 204, "no browser leaves the name out"
    address = 403 if watched.settings.host == "127.0.0.1" else 204
    for host in (b"203.0.113.7:8000", b"[2001:db8::1]:8000"):
        assert (await watched.ask("GET", "/users", headers_of(key, host=host)))[0] == address


FOREIGN_ORIGINS = (b"https://evil.example", b"null", b"", b"http://localhost:3000", b"http://127.0.0.1", b"http://LOCALHOST:8000",
                   b"file://", b"http://localhost:8000@evil.example", b"http://localhost:8000.evil.example",
                   b"chrome-extension://localhost:8000", b"http://[", b"\xff", b"http://localhost:8000/x")  # fmt: skip


async def test_pages_from_elsewhere_change_nothing(watched: Watched) -> None:
    changing = [(method, route.path_format) for route in watched.routes for method in route.methods
                if method not in ("GET", "HEAD", "OPTIONS")]  # fmt: skip
    assert len(changing) >= 10
    host = b"localhost:8000"
    for (caller, key), (method, path) in itertools.product(watched.callers().items(), changing):
        may = watched.may(caller, method, path)
        for origin in FOREIGN_ORIGINS:
            assert (await watched.ask(method, concrete(path), headers_of(key, (b"origin", origin), host=host)))[1] == []
        for kind in (
            None,
            b"",
            b"text/plain",
            b"application/x-www-form-urlencoded",
            b"multipart/form-data; boundary=x",
        ):
            headers = [header for header in headers_of(key, host=host) if header[0] != b"content-type"]
            headers += [] if kind is None else [(b"content-type", kind)]
            status, ran = await watched.ask(method, concrete(path), headers)
            assert ran == [] and (not may or status == 400)
        for own in (b"http://localhost:8000", b"https://localhost:8000"):
            _, ran = await watched.ask(method, concrete(path), headers_of(key, (b"origin", own), host=host))
            assert bool(ran) == may
        usual = headers_of(key, (b"origin", b"https://localhost"), host=b"localhost:443")
        assert bool((await watched.ask(method, concrete(path), usual))[1]) == may


async def test_nothing_that_a_proxy_says_gives_a_right(watched: Watched) -> None:
    said = ((b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=127.0.0.1;host=localhost"), (b"via", b"1.1 x"),
            (b"x-real-ip", b"::1"), (b"x-forwarded-host", b"localhost"), (b"x-original-url", b"/livez"),
            (b"x-rewrite-url", b"/livez"), (b"x-http-method-override", b"GET"),
            (b"x-forwarded-prefix", b"/livez"))  # fmt: skip
    for (caller, key), route in itertools.product(watched.callers().items(), watched.routes):
        for method in route.methods:
            for more in (*((each,) for each in said), said):
                _, ran = await watched.ask(method, concrete(route.path_format), headers_of(key, *more))
                assert bool(ran) == watched.may(caller, method, route.path_format)


async def test_hosts_and_origins_that_are_named_are_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"allowed_hosts": ("shop.example", "service"), "cors_origins": ("https://page.example",)}
    watched = Watched(given, monkeypatch)
    for host, status in ((b"shop.example", 204), (b"SHOP.example:8443", 204), (b"service:8000", 204),
                         (b"localhost", 204), (b"evil.shop.example", 403), (b"shop.example.evil", 403),
                         (b"other", 403)):  # fmt: skip
        assert (await watched.ask("GET", "/users", headers_of(None, host=host)))[0] == status, host
    for origin, status in ((b"https://page.example", 204), (b"http://page.example", 403)):
        assert (await watched.ask("DELETE", "/users/u1", headers_of(None, (b"origin", origin))))[0] == status
    everything = Watched({"allowed_hosts": ("*",)}, monkeypatch)
    assert (await everything.ask("GET", "/users", headers_of(None, host=b"whatever.example")))[0] == 204


async def test_without_a_key_unknown_paths_look_like_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(SETTINGS["both"], monkeypatch)
    for method, path in (
        ("GET", "/no/such"),
        ("GET", "/users/u1"),
        ("PATCH", "/users/u1"),
        ("GET", "/artifacts/x/load"),
    ):
        for key in (None, "no-such-key"):
            assert (await watched.ask(method, path, headers_of(key)))[0] == 401
    for kind in ("api", "admin"):
        assert (await watched.ask("GET", "/no/such", headers_of(KEYS[kind])))[0] == 404
        assert (await watched.ask("PATCH", "/users/u1", headers_of(KEYS[kind])))[0] == 405
    assert (await watched.ask("POST", "/livez", headers_of(None)))[0] == 405


def test_a_route_that_does_not_say_who_may_call_it_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(load_settings(store="sqlite:///:memory:"))
    monkeypatch.setattr(items.router, "routes", list(items.router.routes))

    async def forgotten() -> None: ...

    items.router.add_api_route("/forgotten", forgotten)
    with pytest.raises(TypeError, match="GET /forgotten does not say who may call it"):
        create_app(service)
    opened_by(Right.API)(forgotten)
    assert right_of(items.router.routes[-1]) is Right.API
    create_app(service)

    async def listen(_: Any) -> None: ...

    items.router.routes.append(WebSocketRoute("/socket", opened_by(Right.OPEN)(listen)))
    with pytest.raises(TypeError, match="no HTTP route"):
        create_app(service)


async def test_a_route_added_later_is_not_there() -> None:
    app = create_app(Service(load_settings(store="sqlite:///:memory:")))
    app.add_api_route("/late", lambda: "late")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/late", "raw_path": b"/late", "query_string": b"",
             "headers": [(b"host", b"localhost")]}  # fmt: skip
    await app(scope, receive, send)
    assert sent[0]["status"] == 404


# -- a real process ------------------------------------------------------------------------------------------------


def status_of(server: Process, request: bytes) -> int:
    """Send bytes over a connection of its own; return the status, or 0 where it is closed without one."""
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as client:
        client.sendall(request)
        with client.makefile("rb") as answer:
            line = answer.readline()
    return int(line.split()[1]) if line else 0


TARGETS = (
    "%0A",
    "%0D%0A",
    "%00",
    "/",
    "%20",
    ";x",
    "%2F",
    "\xff",
    "\xc3\xa9",
    "\\",
    "%C0%8A",
    "#x%0A",
    "?%0A",
    "%0A?x=1",
)


def test_a_real_process_refuses_the_same(tmp_path: Path) -> None:
    body = json.dumps({"weights": {"fake": 1}}).encode()

    def put(target: str, key: str = "", host: str = "localhost", more: str = "") -> bytes:
        head = (f"PUT {target} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\nx-api-key: {key}\r\n{more}"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n")  # fmt: skip
        return head.encode("latin-1") + body

    with process(tmp_path, api_keys=API, admin_keys=ADMIN) as server:
        for key in ("", KEYS["api"], KEYS["wrong"]):
            for target in (*(f"/traffic{end}" for end in TARGETS), "//traffic", "/./traffic", "/%74raffic",
                           "/x/../traffic", "http://localhost/traffic", "http://localhost/traffic%0A", "/TRAFFIC", "*",
                           "/livez/../traffic", "/%0Atraffic", "/traffic%250A"):  # fmt: skip
                status = status_of(server, put(target, key))
                assert status in (400, 401, 403, 404), (target, key, status)
        assert status_of(server, put("/traffic", KEYS["admin"])) == 200
        assert status_of(server, put("/%74raffic?", KEYS["admin"])) in (200, 422)
        assert status_of(server, put("/traffic", KEYS["admin"], "evil.example")) == 403
        assert status_of(server, put("/traffic", KEYS["admin"], more="origin: https://evil.example\r\n")) == 403
    with process(tmp_path) as server:
        assert status_of(server, put("/traffic")) == 401, "not even on this machine: a proxy is on it too"
        assert server.admin_key is not None and status_of(server, put("/traffic", server.admin_key)) == 200
