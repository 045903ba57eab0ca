"""Draws dashboards in a browser with Grafana's own components (`panels/`), from the answers of a Prometheus.

Grafana itself cannot be run here. Its library of components can: lines, numbers and tables, with their axes, units,
legends and thresholds. It has no state timelines and no heat maps; of these the page shows the last values.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from testing.browser import Browser
from tests.deploy.boards import RANGE, chosen, filled, queries
from tests.deploy.prometheus import ROOT, Prometheus

PANELS = Path(__file__).resolve().parent / "panels"
INSTALLED = ROOT / ".panels" / "node_modules"  # by `make panels`
PAGE = """<!doctype html><meta charset="utf-8"><title>panels</title><link rel="stylesheet" href="page.css">
<div id="board"></div><script src="page.js"></script>"""
STEP_S = 0.5
SPAN_S = int(RANGE.removesuffix("s"))
WIDTH, ROW_HEIGHT = 1560, 38  # pixels: of the 24 columns of a dashboard, of a row of its grid


@dataclass(frozen=True)
class Line:
    """A line: how many values it has, the highest, where its axis begins and ends, the share of it that is visible."""

    name: str
    ref: str
    points: int
    high: float
    low_end: float
    high_end: float
    ticks: tuple[str, ...]
    inked: float


@dataclass(frozen=True)
class Drawn:
    """What a panel shows: its text, the texts that are cut off, those with their colours, and its lines.

    `steps` has the share of the width at which each threshold is visible, by its value.
    """

    text: str
    cut: tuple[str, ...]
    colours: dict[str, tuple[int, ...]]
    lines: tuple[Line, ...]
    steps: dict[float, float]


class _Quiet(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        """Send a file; the fonts of Grafana are not published, and the browser takes its own."""
        if "/fonts/" in self.path:
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


@contextlib.contextmanager
def drawing_page(folder: Path) -> Iterator[str]:
    """Bundle the page into `folder` and serve it; gives its address. Skips without Node.js or the packages."""
    node = shutil.which("node")
    if node is None or not (INSTALLED / ".package-lock.json").exists():
        pytest.skip("needs the Debian packages nodejs and npm, then: make panels")
    command, environment = [node, PANELS / "bundle.cjs", folder], {**os.environ, "NODE_PATH": str(INSTALLED)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (folder / "index.html").write_text(PAGE)
    (folder / "favicon.ico").touch()
    (folder / "public").symlink_to(INSTALLED / "@grafana" / "ui" / "dist" / "public")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/index.html"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Answers:
    """What Prometheus answered to the queries of each panel, by its number, for the time before `end_s`."""

    end_s: float
    by_panel: dict[int, list[dict[str, Any]]]

    @property
    def complete(self) -> bool:
        """Whether every query has an answer."""
        return all(answer["result"] for found in self.by_panel.values() for answer in found)


def answers(server: Prometheus, board: dict[str, Any]) -> Answers:
    """Ask every query of a dashboard, over the last `SPAN_S` seconds or now."""
    end = time.time()
    values: dict[str, dict[str, str]] = {}
    found: dict[int, list[dict[str, Any]]] = {}
    for query in queries(board):
        if query.job not in values:
            values[query.job] = chosen(server, board, query.job)
        expression = filled(query.expression, values[query.job])
        if query.instant:
            # At one time for all, as Grafana asks: a table is merged by it.
            samples = server.get("query", query=expression, time=str(end))["result"]
            result = [{"metric": each["metric"], "values": [each["value"]]} for each in samples]
        else:
            span = {"start": str(end - SPAN_S), "end": str(end), "step": str(STEP_S)}
            result = server.get("query_range", query=expression, **span)["result"]
        found.setdefault(query.panel_id, []).append({"step_ms": 1000 * STEP_S, "result": result})
    return Answers(end, found)


def _drawn(report: dict[str, Any]) -> Drawn:
    lines = report["lines"] or {"series": [], "axes": [], "scales": {}, "steps": []}
    ticks = {axis["scale"]: tuple(axis["ticks"]) for axis in lines["axes"]}
    return Drawn(
        report["text"],
        tuple(report["cut"]),
        {each["text"]: tuple(each["rgb"]) for each in report["coloured"]},
        tuple(
            Line(
                each["name"], each["ref"], each["points"], each["high"], *lines["scales"][each["scale"]],
                ticks[each["scale"]], each["inked"],
            )
            for each in lines["series"]
        ),
        {each["value"]: each["inked"] for each in lines["steps"]},
    )  # fmt: skip


def draw(browser: Browser, board: dict[str, Any], data: Answers, mode: str, picture: Path) -> dict[int, Drawn]:
    """Draw a dashboard, `light` or `dark`, keep the picture, and tell what each panel shows, by its number."""
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    browser.size(WIDTH, ROW_HEIGHT * rows + 16)
    span = [1000 * (data.end_s - SPAN_S), 1000 * data.end_s]
    given = ", ".join(json.dumps(each) for each in (board, data.by_panel, span, mode))
    browser.evaluate(f"draw({given})")
    browser.wait_for("settled()", "panels that no longer change")
    browser.screenshot(picture)
    return {panel["id"]: _drawn(browser.evaluate(f"report({panel['id']})")) for panel in panels}
