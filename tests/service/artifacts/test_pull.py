"""Pulling an artifact: complete and as its manifest says, or not at all."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modeling.artifact.manifest import file_sha256
from service.artifacts.loading import open_artifact
from service.artifacts.pull import PullError, pull
from testing.artifacts import write_id_artifact
from testing.running import ROOT


@dataclass
class Web:
    """A folder behind an HTTP server on a free port; notes what was asked for."""

    folder: Path
    url: str
    asked: list[str] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    redirect: str | None = None


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *given: object, web: Web) -> None:
        self.web = web
        super().__init__(*given, directory=str(web.folder))  # type: ignore[arg-type, misc]

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        self.web.headers.append(self.headers)
        if self.web.redirect is not None:
            self.send_response(302)
            self.send_header("location", self.web.redirect)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_id_artifact(tmp_path_factory.mktemp("made"), "small")


@pytest.fixture
def web(made: Path, tmp_path: Path) -> Iterator[Web]:
    shutil.copytree(made, tmp_path / "web" / "some bucket" / "small")
    web = Web(tmp_path / "web", "")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, web=web))
    web.url = f"http://127.0.0.1:{server.server_address[1]}/some%20bucket/small"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield web
    server.shutdown()
    server.server_close()
    thread.join()


def test_over_http_it_arrives_complete_and_can_be_served(web: Web, made: Path, tmp_path: Path) -> None:
    target = tmp_path / "artifacts" / "small"
    version = pull(web.url, target, sha256=file_sha256(made / "manifest.json"))
    assert open_artifact(target, "cpu").version == version
    assert sorted(path.name for path in target.parent.iterdir()) == ["small"], "no leftovers"


def test_a_folder_is_a_source_too_and_what_is_here_already_is_not_fetched_again(
    web: Web, made: Path, tmp_path: Path
) -> None:
    target = tmp_path / "small"
    pull(str(made), target)
    (target / "projector.safetensors").write_bytes(b"damaged")
    pull(web.url + "/", target)
    assert sorted(path.rsplit("/", 1)[-1] for path in web.asked) == ["manifest.json", "projector.safetensors"]
    assert open_artifact(target, "cpu")


@pytest.mark.parametrize("harm", ["altered", "shortened", "missing", "manifest"])
def test_a_source_that_is_not_what_it_says_leaves_everything_as_it_was(
    web: Web, made: Path, tmp_path: Path, harm: str
) -> None:
    target = tmp_path / "small"
    pull(str(made), target)
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    theirs = web.folder / "some bucket" / "small"
    manifest = json.loads((theirs / "manifest.json").read_text())
    changed = theirs / "catalog.parquet"
    manifest["checksum"] = ""
    manifest["files"]["catalog.parquet"] = "0" * 64  # so that it is fetched at all
    (theirs / "manifest.json").write_text(json.dumps(manifest))
    if harm == "altered":
        changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    elif harm == "shortened":
        changed.write_bytes(changed.read_bytes()[:100])
    elif harm == "missing":
        changed.unlink()
    else:
        (theirs / "manifest.json").write_text("{}")
    with pytest.raises(PullError) as refused:
        pull(web.url, target)
    assert "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert not list(tmp_path.glob(".*"))


def test_a_pinned_manifest_must_be_that_one(web: Web, tmp_path: Path) -> None:
    with pytest.raises(PullError, match=r"manifest\.json .* expected 000000000000"):
        pull(web.url, tmp_path / "small", sha256="0" * 64)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/outside", "a/../../outside", "a\\b", "./a", "a//b", "\x1b[31ma", "a\nb"]
)
def test_a_manifest_cannot_name_a_file_outside(web: Web, tmp_path: Path, name: str) -> None:
    file = web.folder / "some bucket" / "small" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["checksum"] = ""
    manifest["files"][name] = "0" * 64
    file.write_text(json.dumps(manifest))
    with pytest.raises(PullError, match="not a plain path"):
        pull(web.url, tmp_path / "in" / "small")
    assert not list(tmp_path.rglob("outside"))


def test_user_password_and_query_are_used_and_never_shown(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, signed = web.url.removeprefix("http://"), "X-Signature=s3cr3t%2Fx&Expires=9#f"
    lines: list[str] = []
    pull(f"http://us%40er:p4ss@{host}?{signed}", tmp_path / "small", note=lines.append)
    assert all(path.endswith("?X-Signature=s3cr3t%2Fx&Expires=9") for path in web.asked) and len(web.asked) > 3
    assert {header.get("authorization") for header in web.headers} == {"Basic dXNAZXI6cDRzcw=="}
    said = list(lines)
    for source in (
        f"http://us%40er:p4ss@{host}x?{signed}", f"gopher://us%40er:p4ss@{host}?{signed}",
        f"http://us%40er:p4ss@127.0.0.1:1/?{signed}", f"http://us%40er:p4ss@[x?{signed}",
        f"http://us%40er:p4ss@a b?{signed}", f"http://user:p4ss/x@{host}", f"http://user:p4ss#x@{host}",
        f"http://user:p4ss?x@{host}", f"https://user:1/p4ss@{host}", f"http://user:1#p4ss@{host}",
    ):  # fmt: skip
        with pytest.raises(PullError) as refused:
            pull(source, tmp_path / "other")
        said.append(str(refused.value))
    web.redirect = f"ftp://us%40er:p4ss@host/x?{signed}"
    with pytest.raises(PullError) as refused:
        pull(web.url, tmp_path / "other")
    said.append(str(refused.value))
    assert not [line for line in said if any(word in line for word in ("p4ss", "s3cr3t"))]


def test_size_and_time_are_limited(web: Web, tmp_path: Path) -> None:
    with pytest.raises(PullError, match=r"larger than 5000 bytes \(--max-bytes\)"):
        pull(web.url, tmp_path / "small", most_bytes=5000)
    with pytest.raises(PullError, match=r"longer than 0 s \(--seconds\)"):
        pull(web.url, tmp_path / "small", seconds=0)
    assert not list(tmp_path.glob("*small*"))


def test_redirects_lead_to_http_only(web: Web, tmp_path: Path) -> None:
    for place in (f"file://{web.folder}/some%20bucket/small/manifest.json", "ftp://127.0.0.1/x"):
        web.redirect = place
        with pytest.raises(PullError):
            pull(web.url, tmp_path / "small")


def test_a_folder_that_is_no_artifact_is_not_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(PullError, match="holds no artifact"):
        pull(str(made), tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").exists()
    with pytest.raises(PullError, match="known are http"):
        pull("gopher://x/y", tmp_path / "new")
    with pytest.raises(PullError, match="is no folder"):
        pull(str(tmp_path / "nowhere"), tmp_path / "new")


def test_from_s3_with_boto3_against_a_server_that_answers_as_s3_does(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GetObject of a path-style address is a plain GET; the signature is not looked at."""
    pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'anyo[s3]'")
    (web.folder / "some bucket").rename(web.folder / "bucket")
    for name, value in {
        "AWS_ENDPOINT_URL_S3": web.url.partition("/some")[0], "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    version = pull("s3://bucket/small", tmp_path / "small")
    assert open_artifact(tmp_path / "small", "cpu").version == version
    with pytest.raises(PullError, match=r"manifest\.json at s3://bucket/nothing"):
        pull("s3://bucket/nothing", tmp_path / "none")


def test_without_boto3_s3_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(PullError, match=r"pip install 'anyo\[s3\]'"):
        pull("s3://bucket/small", tmp_path / "small")


def test_the_command(web: Web, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "service", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)

    done = run("pull", web.url, str(tmp_path / "small"), "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["version"]
    failed = run("pull", web.url + "x", str(tmp_path / "other"))
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and "404" in failed.stderr
    key = json.loads(run("key", "--name", "shop", "--json").stdout)
    assert key["setting"].startswith("shop:")
