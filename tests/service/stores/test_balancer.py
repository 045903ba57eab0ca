"""What the shipped HAProxy configuration lets through to a replica."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from service.http.app import create_app
from service.http.rights import Right, right_of
from service.service import Service
from service.settings import load_settings
from testing.balancer import balancer


class Replica(ThreadingHTTPServer):
    """Answers everything with 200 and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def answer(self) -> None:
        assert isinstance(self.server, Replica)
        if self.path != "/readyz":
            self.server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_OPTIONS = do_POST = do_PUT = do_DELETE = do_PATCH = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(name="replica")
def _replica() -> Iterator[Replica]:
    with Replica() as replica:
        thread = threading.Thread(target=replica.serve_forever, args=(0.05,))
        thread.start()
        yield replica
        replica.shutdown()
        thread.join()


def status_of(url: str, method: str, target: str, host: str) -> int:
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as client:
        head = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}"
        client.sendall(head.encode())
        with client.makefile("rb") as answer:
            return int(answer.readline().split()[1])


def test_admin_requests_and_metrics_do_not_pass_however_they_are_spelled(replica: Replica, tmp_path: Path) -> None:
    routes = create_app(Service(load_settings(store="sqlite:///:memory:"))).state.routes
    with balancer(tmp_path, [replica.url]) as url:
        for route in routes:
            target = route.path_format.replace("{name}", "fake").replace("{user_id}", "u1").replace("{item_id}", "i1")
            for method in route.methods:
                passes = right_of(route) is not Right.ADMIN and target != "/metrics"
                status = status_of(url, method, target, "shop.example")
                assert (status == 200) == passes, (method, target, status)
        replica.asked.clear()
        for method, path in (("PUT", "/traffic"), ("POST", "/artifacts/fake/activate"), ("GET", "/metrics")):
            for spelled in (path, path + "%0A", path + "/", path + "?x=1", path + ";x", "/" + path, "/." + path,
                            "/users/.." + path, f"/%{ord(path[1]):x}{path[2:]}",
                            "http://localhost" + path):  # fmt: skip
                for host in ("localhost", "127.0.0.1", "shop.example"):
                    status = status_of(url, method, spelled, host)
                    # A path that begins as a user's may pass: the service finds no route for it.
                    assert status in (400, 403, 404) or spelled.startswith("/users/.."), (method, spelled, host, status)
        assert all(" /users/" in asked for asked in replica.asked), replica.asked
