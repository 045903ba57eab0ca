"""Logs of a real process: every line is one JSON object, and what belongs to a request names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from testing.fake_parts import item_id
from testing.running import process


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines()]


def test_every_line_about_a_request_has_its_id_whatever_thread_it_came_from(tmp_path: Path) -> None:
    with process(tmp_path, log_level="debug", poison=13) as server:
        for name, body in {
            "good": {"history": [item_id(1)]},
            "poisoned": {"history": [item_id(13)]},
            "refused": {"history": ["nobody knows"]},
        }.items():
            httpx.post(server.url + "/recommend", json=body, headers={"x-request-id": name})
        code, log = server.end()
    assert code == 0
    logged = lines(log)
    for line in logged:
        assert {"event", "level", "logger", "timestamp"} <= set(line), line
    of_requests = [line for line in logged if line["event"] in ("request", "request failed")]
    assert [(line["request_id"], line.get("status")) for line in of_requests] == [
        ("good", 200), ("poisoned", None), ("poisoned", 500), ("refused", 422),
    ]  # fmt: skip
    (failed,) = [line for line in logged if line["event"] == "request failed"]
    assert "poisoned row" in failed["error"] and "Traceback" in failed["exception"]
    assert not any("request_id" in line for line in logged if line["event"] == "artifact ready")


def test_at_the_default_level_a_good_request_is_not_logged(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        httpx.post(server.url + "/recommend", json={"history": [item_id(1)]})
        _, log = server.end()
    events = {line["event"] for line in lines(log)}
    assert {"artifact ready", "draining"} <= events
    assert "request" not in events
