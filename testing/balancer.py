"""The shipped HAProxy configuration on free ports of 127.0.0.1, in front of replicas."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from testing.redis_server import free_port
from testing.running import ROOT

CONFIG = ROOT / "deploy" / "haproxy" / "haproxy.cfg"
PATIENCE_S = 20.0


def configuration(port: int, replicas: Sequence[str]) -> str:
    """Return the shipped file with other addresses, and nothing else changed."""
    text, found = re.subn(r"^    bind :8080$", f"    bind 127.0.0.1:{port}", CONFIG.read_text(), flags=re.MULTILINE)
    assert found == 1
    text, found = re.subn(r"^    server replica\d .*\n", "", text, flags=re.MULTILINE)
    assert found == 3
    servers = [f"    server replica{place} {urlsplit(url).netloc}\n" for place, url in enumerate(replicas, 1)]
    return text + "".join(servers)


@contextlib.contextmanager
def balancer(folder: Path, replicas: Sequence[str]) -> Iterator[str]:
    """Run HAProxy in front of the replicas at these URLs; yields its own. Skips the test where it is not installed."""
    program = shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")
    if program is None:
        pytest.skip("haproxy is not installed (Debian and Ubuntu: apt-get install haproxy)")
    port = free_port()
    (folder / "haproxy.cfg").write_text(configuration(port, replicas))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", str(folder / "haproxy.cfg")], stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + PATIENCE_S
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"haproxy did not start: {(folder / 'haproxy.log').read_text()}")
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def _answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url + "/readyz").status_code == 200
    return False
