"""Kill -9 in the middle of changes: nothing that was acknowledged is lost, nothing that was deleted comes back."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import httpx

from testing.fake_parts import item_id
from testing.running import Process, process

ACKNOWLEDGED = 40  # changes before the kill


def change(server: Process, start: int, states: dict[str, str], enough: threading.Event) -> None:
    """Add items and delete every second of them, as fast as they are acknowledged, until the server is gone."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": server.admin_key or ""}, timeout=10) as client:
        for number in range(start, start + 100_000):
            for method in ("PUT", "DELETE") if number % 2 else ("PUT",):
                name = f"new-{number}"
                body = {"title": f"Title {number}"} if method == "PUT" else None
                states.pop(name, None)  # unknown while it is on its way
                try:
                    answer = client.request(
                        method, f"/items/{name}", json=body, headers={"content-type": "application/json"}
                    )
                except httpx.HTTPError:
                    return
                assert answer.status_code == 200, answer.text
                states[name] = "live" if method == "PUT" else "deleted"
                if len(states) >= start + ACKNOWLEDGED:
                    enough.set()


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    store = {"item_store": f"sqlite:///{tmp_path / 'items.sqlite'}"}
    states: dict[str, str] = {}
    for start in (0, ACKNOWLEDGED):
        with process(tmp_path, **store) as server:
            enough = threading.Event()
            writer = threading.Thread(target=change, args=(server, start, states, enough))
            writer.start()
            assert enough.wait(30)
            server.end(signal.SIGKILL)
            writer.join()
    with process(tmp_path, **store) as server, httpx.Client(base_url=server.url, timeout=10) as client:
        body = {"history": [item_id(3)], "k": 1000, "exclude_seen": False}
        found = {item["item_id"] for item in client.post("/recommend", json=body).json()["items"]}
    assert {name for name, state in states.items() if state == "live"} <= found
    assert not {name for name, state in states.items() if state == "deleted"} & found
    assert len(states) >= 2 * ACKNOWLEDGED
