"""The life of a real process: clients that leave, SIGTERM under load, kill -9, a start that fails."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import uvloop

from service.http.server import _listen, _serve
from service.service import Service
from service.settings import load_settings
from testing.fake_parts import item_id, make_parts, opener
from testing.running import ROOT, Process, process

PATIENCE_S = 20.0
ENOUGH = 100  # appends before the process is killed


def metric(url: str, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(url + "/metrics").text, re.MULTILINE)
    assert found is not None, name
    return float(found.group(1))


def wait_until(url: str, name: str, value: float) -> None:
    end = time.monotonic() + PATIENCE_S
    while metric(url, name) != value:
        assert time.monotonic() < end, f"{name} is {metric(url, name)}, not {value}"
        time.sleep(0.02)


def send(server: Process, rows: list[int]) -> socket.socket:
    """Send a request over a connection of its own and do not wait for the answer."""
    address = urlsplit(server.url)
    assert address.hostname is not None and address.port is not None
    client = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)
    body = json.dumps({"history": [item_id(row) for row in rows]}).encode()
    head = "POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n"
    client.sendall(head.encode() + b"\r\n" + body)
    return client


def status(client: socket.socket) -> int:
    """Read an answer's status and close the connection; 0 means that none came."""
    with client:
        answer = client.recv(65_536)
    return int(answer.split()[1]) if answer else 0


def busy(server: Process, waiting: int) -> list[socket.socket]:
    """Hold the device with one request on it, and send `waiting` more that queue up."""
    server.hold.touch()
    clients = [send(server, [199])]
    end = time.monotonic() + PATIENCE_S
    while not server.hold.with_suffix(".on").exists():
        assert time.monotonic() < end, "the request did not reach the device"
        time.sleep(0.01)
    clients += [send(server, [row, row + 1]) for row in range(waiting)]
    wait_until(server.url, "anyo_queue_depth", waiting)
    return clients


def test_a_client_that_leaves_is_never_computed(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        clients = busy(server, waiting=7)
        for client in clients[1:]:
            client.close()
        wait_until(server.url, "anyo_cancelled_total", 7)
        assert metric(server.url, "anyo_queue_depth") == 0
        server.hold.unlink()
        assert status(clients[0]) == 200
        assert httpx.post(server.url + "/recommend", json={"history": [item_id(1)]}).status_code == 200
        assert metric(server.url, "anyo_batch_requests_sum") == 2, "the first and the last, none between"


def test_new_connections_are_taken_in_numbers_while_the_loop_is_busy() -> None:
    """One a turn, as uvloop does it alone, would let a probe wait for all the connections that came before it."""
    turns, connections = 0, 40

    def ask(url: str) -> list[int]:
        address = urlsplit(url)
        clients = [socket.create_connection((address.hostname, address.port), PATIENCE_S) for _ in range(connections)]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return [status(client) for client in clients]

    async def serve_and_ask() -> int:
        nonlocal turns
        service = Service(
            load_settings(artifacts=(Path("fake"),), store="sqlite:///:memory:"), open_artifact=opener(make_parts())
        )
        ready = asyncio.get_running_loop().create_future()
        with _listen("127.0.0.1", 0) as listener:
            serving = asyncio.create_task(_serve(service, listener, ready.set_result))
            url = await ready
            asking = asyncio.create_task(asyncio.to_thread(ask, url))
            while not asking.done():
                time.sleep(0.02)
                turns += 1
                await asyncio.sleep(0)
            signal.raise_signal(signal.SIGTERM)
            await serving
            assert await asking == [200] * connections
        return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(serve_and_ask()) < connections


def test_sigterm_under_load_loses_no_request(tmp_path: Path) -> None:
    with process(tmp_path, shutdown_delay_seconds=1.5, max_batch_requests=4) as server:
        assert httpx.get(server.url + "/readyz").status_code == 200
        clients = busy(server, waiting=20)
        server.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + PATIENCE_S
        while (red := httpx.get(server.url + "/readyz")).status_code == 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert red.status_code == 503 and "shutting down" in red.json()["error"]["message"]
        assert httpx.get(server.url + "/livez").status_code == 200
        clients.append(send(server, [50]))  # the load balancer has not noticed yet
        time.sleep(2)
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url + "/livez")
        server.hold.unlink()
        assert [status(client) for client in clients] == [200] * 22
        code, log = server.end(signal.SIGCONT)
        assert code == 0, log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_each_signal_that_ends_loses_no_request(tmp_path: Path, number: int) -> None:
    with process(tmp_path) as server:
        clients = busy(server, waiting=3)
        server.process.send_signal(number)
        server.hold.unlink()
        assert [status(client) for client in clients] == [200] * 4
        assert server.end(signal.SIGCONT)[0] == 0


START = """
import importlib.abc, sys
class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "service.cli":
            import time
            open(sys.argv[-1], "w").close()
            time.sleep(60)
sys.meta_path.insert(0, Slow())
import runpy
runpy.run_module("service", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_imports_ends_the_process(tmp_path: Path, number: int) -> None:
    flag = tmp_path / "importing"
    started = subprocess.Popen(
        [sys.executable, "-c", START, str(flag)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    end = time.monotonic() + PATIENCE_S
    while not flag.exists():
        assert started.poll() is None and time.monotonic() < end, started.communicate()
        time.sleep(0.02)
    started.send_signal(number)
    output = started.communicate(timeout=20)
    assert started.returncode == 0, output
    assert signal.Signals(number).name in output[1] and "Traceback" not in output[1]


def test_sighup_stays_off_where_it_was_turned_off() -> None:
    """As `nohup` does it."""
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from service import early; "
    program += "early.end_on_signals(); signal.raise_signal(signal.SIGHUP); "
    program += "print([number.name for number in early.signals_that_end()])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['SIGTERM', 'SIGINT']"


def test_what_outlasts_the_drain_is_answered_with_503(tmp_path: Path) -> None:
    with process(tmp_path, drain_seconds=0.2) as server:
        clients = busy(server, waiting=3)
        server.process.send_signal(signal.SIGTERM)
        assert [status(client) for client in clients] == [503] * 4
        server.hold.unlink()
        assert server.end(signal.SIGCONT)[0] == 0


def test_events_acknowledged_before_kill_9_are_there_afterwards(tmp_path: Path) -> None:
    acknowledged: dict[str, list[str]] = {}

    async def append(server: Process) -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:

            async def one_user(user: str) -> None:
                for number in range(10_000):
                    item = item_id(number % 200)
                    event = {"item_id": item, "event_id": f"{user}-{number}", "timestamp": number}
                    answer = await client.post(f"/users/{user}/events", json={"events": [event]})
                    assert answer.status_code == 200
                    acknowledged.setdefault(user, []).append(item)

            writers = [asyncio.create_task(one_user(f"u{number}")) for number in range(8)]
            while sum(map(len, acknowledged.values())) < ENOUGH and not any(writer.done() for writer in writers):
                await asyncio.sleep(0.01)
            server.process.kill()
            await asyncio.gather(*writers, return_exceptions=True)

    with process(tmp_path, store_history=10_000) as server:
        asyncio.run(append(server))
    assert sum(map(len, acknowledged.values())) >= ENOUGH
    with process(tmp_path, store_history=10_000) as server:
        for user, items in acknowledged.items():
            events = httpx.get(f"{server.url}/users/{user}").json()["events"]
            # One more may have been stored and not acknowledged; none fewer.
            assert [event["item_id"] for event in events][: len(items)] == items
            assert len(events) <= len(items) + 1
        assert server.end()[0] == 0


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_start_that_cannot_work_says_why_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = start(str(tmp_path / "nothing"))
    assert missing.returncode == 2 and "does not exist" in missing.stderr and "Traceback" not in missing.stderr
    nothing = start()
    assert nothing.returncode == 2 and "name at least one artifact" in nothing.stderr
    (tmp_path / "empty").mkdir()
    empty = start(str(tmp_path / "empty"), "--port", "0", "--store", f"sqlite:///{tmp_path}/h.sqlite")
    assert empty.returncode == 1 and "manifest.json" in empty.stderr and "Traceback" not in empty.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        busy = start(str(tmp_path / "empty"), "--port", port)
    assert busy.returncode == 1 and f"127.0.0.1:{port}" in busy.stderr and "--port" in busy.stderr
    monkeypatch.setenv("ANYO_MAX_BATCH_TOKEN", "5")
    typo = start(str(tmp_path / "empty"))
    assert typo.returncode == 2 and "ANYO_MAX_BATCH_TOKEN;" in typo.stderr
