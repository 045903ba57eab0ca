"""An artifact goes to a hub and comes back: over a stand-in of the hub's HTTP API on this machine."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

import service.admin_cli
import training.cli
from modeling.artifact.manifest import ArtifactError, read_manifest
from service.artifacts.pull import PullError, pull
from testing.artifacts import write_id_artifact
from training.publishing.hub import PublishError, push

TOKEN = "hf_of_a_test"
LARGE = "catalog"
"""Files whose name holds this are redirected, as the hub does with large ones."""


class Hub(ThreadingHTTPServer):
    """Keeps the files of a commit and gives them out; says what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {}
        self.made: dict[str, Any] = {}
        self.tokens_elsewhere: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    """The calls that a push and a pull make."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.partition("/resolve/main/")[2] or self.path.partition("/large/")[2]
        token = self.headers.get("authorization")
        if self.path.startswith("/large/"):
            self.server.tokens_elsewhere.append(token)
        elif token != f"Bearer {TOKEN}":
            self._send(b"{}", 401)
            return
        elif LARGE in name:
            self._send(b"", 302, location=f"{self.server.url}/large/{name}")
            return
        found = self.server.files.get(name)
        self._send(found if found is not None else b"{}", 200 if found is not None else 404)

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(b'{"error": "no"}', 401)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self._send(json.dumps({"url": f"{self.server.url}/me/model"}).encode())
        elif self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._send(json.dumps({"files": files}).encode())
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._send(
                json.dumps({"commitOid": "0" * 40, "commitUrl": f"{self.server.url}/me/model/commit/0"}).encode()
            )
        else:
            self._send(b'{"errors": [], "warnings": []}')

    def _body(self) -> bytes:
        if not self.headers.get("transfer-encoding"):
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def test_an_artifact_comes_back_as_it_went(hub: Hub, tmp_path: Path) -> None:
    made = write_id_artifact(tmp_path, "small")
    address = push(made, "me/model", "---\nlicense: other\n---\n# small\n", endpoint=hub.url)
    assert address.startswith(hub.url) and hub.made["visibility"] == "private"
    manifest = read_manifest(made)
    assert set(hub.files) == {"README.md", "manifest.json", *manifest.files}
    done = CliRunner().invoke(service.admin_cli.app, ["pull", "hf://me/model", str(tmp_path / "back"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["version"] == manifest.version
    there = {
        path.relative_to(tmp_path / "back").as_posix(): path.read_bytes()
        for path in (tmp_path / "back").rglob("*")
        if path.is_file()
    }
    assert there == {name: content for name, content in hub.files.items() if name != "README.md"}
    assert hub.tokens_elsewhere == [None], "the token is for the hub alone"


def test_what_is_damaged_or_refused_is_said(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_id_artifact(tmp_path, "small")
    push(made, "me/model", "# small\n", endpoint=hub.url)
    name = next(iter(read_manifest(made).files))
    hub.files[name] += b"x"
    with pytest.raises(PullError, match="sha256"):
        pull("hf://me/model", tmp_path / "back")
    for source in ("hf://me", "hf://me/model/more", "hf://me/mo del"):
        with pytest.raises(PullError, match="not of the form hf://OWNER/NAME"):
            pull(source, tmp_path / "back")
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(PullError, match="401"):
        pull("hf://me/model", tmp_path / "back")
    with pytest.raises(PublishError, match="me/model was not pushed"):
        push(made, "me/model", "# small\n", endpoint=hub.url)
    (made / name).write_bytes(b"y")
    with pytest.raises(ArtifactError):
        push(made, "me/model", "# small\n", endpoint=hub.url)
    refused = CliRunner().invoke(training.cli.app, ["push", str(made), "me/model"])
    assert refused.exit_code == 2 and refused.stderr.startswith("error: "), refused.output
    assert not (tmp_path / "back").exists()
