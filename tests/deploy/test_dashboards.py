"""Dashboards: the committed JSON is what the program makes, and every query of every panel returns data.

Two real service processes, a load, and a real Prometheus with the shipped configuration and rules.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from testing.browser import NAMES, Browser, find_browser
from tests.deploy.boards import FILES, GRAFANA, SERVICE, boards, chosen, filled, queries, two_replicas
from tests.deploy.drawing import Answers, Drawn, answers, draw, drawing_page
from tests.deploy.prometheus import ROOT, Prometheus, wait_for


def test_the_committed_dashboards_are_what_the_program_makes() -> None:
    command = [sys.executable, "-m", "scripts.dashboards", "--check"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_dashboards_can_be_told_apart_and_their_panels_too() -> None:
    assert len({board["uid"] for board in boards()}) == len({board["title"] for board in boards()}) == 5
    for path, board in zip(FILES, boards(), strict=True):
        assert board["uid"] == path.stem
        numbers = [panel["id"] for panel in board["panels"]]
        assert len(set(numbers)) == len(numbers)
        assert {"datasource", "job", "instance"} <= {each["name"] for each in board["templating"]["list"]}
        for panel in board["panels"]:
            assert panel["title"]
            if panel["type"] != "row":
                assert panel["description"] and panel["datasource"]["uid"] == "${datasource}"


def test_every_query_of_the_service_is_limited_to_the_chosen_services_and_replicas() -> None:
    shown = [query.expression for board in boards() for query in queries(board)]
    marks = [mark["expr"] for board in boards() for mark in board["annotations"]["list"]]
    for expression in shown + marks:
        for selected in re.findall(r"(?<![:\w])(?:anyo|process)_\w+(\{[^}]*\})?", expression):
            assert 'job=~"$job"' in selected and 'instance=~"$instance"' in selected, expression


def test_limits_and_shares_leave_the_lines_readable() -> None:
    """A limit that is drawn has an axis of its own; the axis of a share has an end, or nothing would look like much."""
    limits = 0
    for panel in (panel for board in boards() for panel in board["panels"] if panel["type"] == "timeseries"):
        apart = {
            override["matcher"]["options"]
            for override in panel["fieldConfig"]["overrides"]
            if {"id": "custom.axisPlacement", "value": "right"} in override["properties"]
        }
        for target in panel["targets"]:
            limit = re.fullmatch(r"(?:max|sum)?\(?anyo_\w+_limit(?:_bytes)?\{[^}]*\}\)?", target["expr"]) is not None
            near = panel["title"] == "Device memory"  # most of it is in use: on one axis both can be read
            assert (limit and not near) == (target["refId"] in apart), (panel["title"], target["expr"])
            limits += limit
        defaults = panel["fieldConfig"]["defaults"]
        if defaults["unit"] == "percentunit":
            assert "max" in defaults or "axisSoftMax" in defaults["custom"], panel["title"]
    assert limits == 5


def test_thresholds_are_where_the_alerts_begin() -> None:
    rules = (ROOT / "deploy/prometheus/rules/recording.yml").read_text()
    target = float(re.search(r"anyo:latency_target:seconds\n\s+expr: vector\((.+)\)", rules).group(1))  # type: ignore[union-attr]
    panels = [panel for board in boards() for panel in board["panels"] if panel["title"] == "p99 of /recommend"]
    assert len(panels) == 2
    for panel in panels:
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1] == {"color": "red", "value": target}


def test_grafana_finds_the_data_source_and_the_dashboards() -> None:
    """Grafana cannot be run here: what its files must hold, and that they agree with each other and with compose."""
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    provisioned = yaml.safe_load((GRAFANA / "provisioning/dashboards/anyo.yml").read_text())
    assert provisioned["apiVersion"] == 1
    (provider,) = provisioned["providers"]
    assert source["type"] == "prometheus" and source["access"] == "proxy" and source["isDefault"] is True
    assert provider["type"] == "file"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert urlsplit(source["url"]).hostname in services
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"] if volume.startswith("./"))
    assert mounts == {
        "./deploy/grafana/provisioning": "/etc/grafana/provisioning",
        "./deploy/grafana/dashboards": provider["options"]["path"],
    }
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def without_data(server: Prometheus) -> list[str]:
    """Every query that gives nothing, or a value that is no number."""
    empty = []
    for board in boards():
        asked = [(query, query.job) for query in queries(board)]
        values = {job: chosen(server, board, job) for job in {job for _, job in asked}}
        for query, job in asked:
            samples = server.query(filled(query.expression, values[job]))
            numbers = [float(sample["value"][1]) for sample in samples]
            if not numbers or not all(map(math.isfinite, numbers)):
                empty.append(f"{query.board} / {query.panel}: {query.expression} gives {samples[:3]}")
    return empty


def unmarked(server: Prometheus) -> list[str]:
    """Marks that have not come up since the services started: both had a start, and a first default artifact."""
    now, board = time.time(), boards()[0]
    values, missing = chosen(server, board, SERVICE), []
    for mark in board["annotations"]["list"]:
        span = {"start": str(now - 240), "end": str(now), "step": "1"}
        found = server.get("query_range", query=filled(mark["expr"], values), **span)["result"]
        labels = set(re.findall(r"\{\{(\w+)\}\}", mark["titleFormat"] + mark["textFormat"]))
        if not found or not labels <= found[0]["metric"].keys():
            missing.append(f"{mark['name']}: {mark['expr']} gives {found[:1]}")
    return missing


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with two_replicas(tmp_path_factory.mktemp("watched")) as server:
        wait_for(lambda: len(server.query('job:anyo_errors:ratio_rate5m{job="anyo"}')) == 1, lambda: "no data")
        # A busy machine may need a few scrapes more before every rate has two samples.
        wait_for(lambda: not without_data(server), lambda: "\n".join(without_data(server)), patience_s=20)
        yield server


@pytest.mark.slow
def test_every_panel_has_data_and_replicas_add_up(watched: Prometheus) -> None:
    server = watched
    assert not unmarked(server)

    capacity = next(board for board in boards() if board["uid"] == "anyo-capacity")
    ready = next(query.expression for query in queries(capacity) if query.panel == "Replicas ready")
    both = chosen(server, capacity, SERVICE)
    assert float(server.query(filled(ready, both))[0]["value"][1]) == 2
    one = {**both, "instance": both["instance"].split("|")[0]}
    assert float(server.query(filled(ready, one))[0]["value"][1]) == 1

    throughput = next(board for board in boards() if board["uid"] == "anyo-throughput")
    by = {query.panel: filled(query.expression, both) for query in queries(throughput)}
    # The two have to be read at one moment: the rates move on.
    sums = f"sum({by['Requests by endpoint']}) - sum({by['Requests by replica']})"
    assert float(server.query(sums)[0]["value"][1]) == pytest.approx(0, abs=1e-6)
    assert len(server.query(by["Requests by replica"])) == 2


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser at the page that draws panels."""
    program = find_browser()
    if program is None:
        pytest.skip(f"needs one of {', '.join(NAMES)} on the PATH (on Debian: apt-get install chromium)")
    profile = tmp_path_factory.mktemp("browser") / "profile"
    with drawing_page(tmp_path_factory.mktemp("page")) as url, Browser(program, profile) as browser:
        browser.open(url)
        yield browser


UNITS = {
    "s": r"[\d.]+ (ns|µs|ms|s|mins?|hours?)", "percentunit": r"[\d.]+%", "reqps": r"[\d.]+ req/s",
    "ops": r"[\d.]+ ops/s", "bytes": r"[\d.]+ ([KMG]i)?B", "none": r"[\d.]+", "short": r"[\d.]+( K| Mil)?",
}  # fmt: skip
"""What Grafana makes of a number in each unit that the panels have; of `suffix:x` it makes `1 x`."""


def written(unit: str) -> str:
    """The pattern of a number with its unit."""
    return rf"[\d.]+( K)? ?{re.escape(unit.removeprefix('suffix:'))}" if unit.startswith("suffix:") else UNITS[unit]


def faults_of_lines(panel: dict[str, Any], shown: Drawn) -> list[str]:
    """Lines that cannot be seen or are flat at the bottom, axes without the unit, thresholds that are not drawn."""
    defaults, faults = panel["fieldConfig"]["defaults"], []
    end = defaults.get("max", defaults["custom"].get("axisSoftMax", 0))
    dashed = defaults["custom"].get("thresholdsStyle", {}).get("mode") == "dashed"
    for line in shown.lines:
        together = max(each.high for each in shown.lines if each.ticks == line.ticks)
        if line.points > 1 and line.inked < 0.5:
            faults.append(f"{line.name} is not where its values are ({line.inked:.2f} of them)")
        if line.high_end > max(2.5 * together, end):
            faults.append(f"{line.name} is flat: it reaches {together} on an axis up to {line.high_end}")
        if not all(re.fullmatch(written(defaults["unit"]), tick) for tick in line.ticks) or len(line.ticks) < 2:
            faults.append(f"the axis of {line.name} has no unit {defaults['unit']}: {line.ticks}")
        if len({*line.ticks}) < len(line.ticks):
            faults.append(f"the axis of {line.name} names one value twice: {line.ticks}")
        if line.name not in shown.text:
            faults.append(f"the legend does not name {line.name}")
    for value, share in shown.steps.items() if dashed else ():
        if shown.lines[0].low_end < value < shown.lines[0].high_end and share < 0.2:
            faults.append(f"the threshold at {value} is not drawn")
    return faults


def faults_of_numbers(panel: dict[str, Any], shown: Drawn, numbers: list[float], browser: Browser) -> list[str]:
    """Numbers without their unit, or not in the colour of the threshold that they have reached."""
    defaults = panel["fieldConfig"]["defaults"]
    faults = [] if re.search(written(defaults["unit"]), shown.text) else [f"no {defaults['unit']} in {shown.text}"]
    steps = defaults.get("thresholds", {"steps": [{"color": "red", "value": None}]})["steps"]
    for number in numbers:
        name = [step["color"] for step in steps if step["value"] is None or step["value"] <= number][-1]
        if tuple(browser.evaluate(f"colour({name!r})")) not in shown.colours.values():
            faults.append(f"{number} is not {name}: {shown.colours}")
    return faults


@pytest.mark.slow
@pytest.mark.parametrize("uid", [path.stem for path in FILES])
def test_every_panel_is_drawn_by_grafana_and_readable(
    uid: str, watched: Prometheus, canvas: Browser, tmp_path: Path
) -> None:
    board = next(board for board in boards() if board["uid"] == uid)
    # Where a scrape came late there is no value for a moment.
    tried: list[Answers] = []
    wait_for(lambda: tried.append(answers(watched, board)) or tried[-1].complete, lambda: "some queries have no answer")
    data, faults = tried[-1], []
    for mode in ("light", "dark") if uid == "anyo-overview" else ("dark",):
        drawn = draw(canvas, board, data, mode, tmp_path / f"{mode}.png")
        for panel in (panel for panel in board["panels"] if panel["type"] != "row"):
            shown = drawn[panel["id"]]
            found = [f"{shown.cut} do not fit"] if shown.cut else []
            if "No data" in shown.text:
                found.append("No data")
            elif panel["type"] == "timeseries":
                found += faults_of_lines(panel, shown) if shown.lines else ["no lines"]
            elif panel["type"] == "stat":
                results = [result for answer in data.by_panel[panel["id"]] for result in answer["result"]]
                found += faults_of_numbers(panel, shown, [float(each["values"][0][1]) for each in results], canvas)
            faults += [f"{panel['title']}, {mode}: {fault}" for fault in found]
    assert faults == []
    assert [entry for entry in canvas.log if not entry.startswith("warning")] == []


def test_panels_stand_beside_each_other_within_the_width() -> None:
    for board in boards():
        taken: set[tuple[int, int]] = set()
        for place in (panel["gridPos"] for panel in board["panels"]):
            assert place["x"] + place["w"] <= 24, (board["uid"], place)
            cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
            assert not cells & taken, (board["uid"], place)
            taken |= cells
