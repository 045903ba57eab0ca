"""Dashboards: the committed JSON is what the program makes, and every query of every panel returns data.

Two real service processes, a load, and a real Prometheus with the shipped configuration and rules.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from testing.fake_parts import item_id
from testing.running import Process, process
from tests.deploy.exporter import Exporter, Replica
from tests.deploy.prometheus import ROOT, Prometheus, prometheus, wait_for

GRAFANA = ROOT / "deploy" / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
FACTOR = 30  # five minutes take ten seconds
RATE_INTERVAL = "4s"  # Grafana takes four scrapes and more
RANGE = "30s"  # Grafana's choice of time
SERVICE, ON_A_GPU = "anyo", "anyo-gpu"


@dataclass(frozen=True)
class Query:
    """One query of a panel, and where it stands."""

    board: str
    row: str
    panel: str
    expression: str

    @property
    def job(self) -> str:
        """The service that has data for it: the stand-in is on a GPU, and its store fails, so an alert fires."""
        return ON_A_GPU if self.row.startswith("GPU") or self.panel == "Firing alerts" else SERVICE


def boards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in FILES]


def queries(board: dict[str, Any]) -> Iterator[Query]:
    row = ""
    for panel in board["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", ()):
            yield Query(board["uid"], row, panel["title"], target["expr"])


def variables(board: dict[str, Any]) -> dict[str, str]:
    listed = board["templating"]["list"]
    return {each["name"]: each["query"] for each in listed if each["type"] == "query"}


def filled(expression: str, values: dict[str, str]) -> str:
    for name, value in {**values, "__rate_interval": RATE_INTERVAL, "__range": RANGE}.items():
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def chosen(server: Prometheus, board: dict[str, Any], job: str) -> dict[str, str]:
    """What Grafana puts in place of each variable when everything is chosen: a|b|c."""
    values = {"job": job}
    for name, query in variables(board).items():
        series, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        found = server.get(f"label/{label}/values", **{"match[]": filled(series, values)})
        assert found, f"variable {name} of {board['uid']} has nothing to choose from"
        if name != "job":
            values[name] = "|".join(re.escape(value) for value in found).replace("\\", "\\\\")
    return values


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
            assert limit == (target["refId"] in apart), (panel["title"], target["expr"])
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


def ask_everything(client: httpx.Client, number: int) -> None:
    """One of each kind of request: answered by the model, the cache, with popular items; the store; refusals."""
    event = {"item_id": item_id(number % 200), "event_id": str(number)}
    client.post("/recommend", json={"history": [item_id(number % 200), item_id(number // 200 % 200)]})
    client.post("/recommend", json={"history": [item_id(1), item_id(2)], "user_id": f"u{number % 7}"})
    popular = client.post("/recommend", json={"user_id": "nobody"}).json()
    written = client.post("/recommend/generative", json={"history": [item_id(number % 200)], "beams": 4}).json()
    for answer in (popular, written):
        for item in (answer["items"][1]["item_id"], item_id(number % 200)):
            client.post("/feedback", json={"request_id": answer["request_id"], "item_id": item})
    client.post("/recommend", json={"history": [{"title": f"A title {number % 50}"}, item_id(number // 50 % 200)]})
    client.post("/recommend", json={"history": ["not in the catalog"]})
    client.post(f"/users/u{number % 7}/events", json={"events": [event]})
    for path in ("/users", "/users/u1", "/items", f"/items/{item_id(3)}", "/artifacts", "/no/such/path"):
        client.get(path)
    client.delete("/users/u9", headers={"content-type": "application/json"})


@contextlib.contextmanager
def under_load(servers: list[Process]) -> Iterator[None]:
    """Ask the servers in turn until the end of the block."""
    done = threading.Event()

    def ask() -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=each.url, timeout=30)) for each in servers]
            for number in itertools.count():
                ask_everything(clients[number % len(clients)], number)
                if done.wait(0.02):
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def two_replicas(folder: Path) -> Iterator[Prometheus]:
    """Two services under load, a stand-in for one on a GPU, and a Prometheus that scrapes them."""
    stand_in = Replica()
    stand_in.change({'anyo_store_up{op="write"}': 0})
    exporter = Exporter({"metrics": stand_in})
    with contextlib.ExitStack() as stack:
        stack.callback(exporter.close)
        servers = []
        for name in ("one", "two"):
            (folder / name).mkdir()
            servers.append(stack.enter_context(process(folder / name)))
        targets = [urlsplit(server.url).netloc for server in servers]
        static = {SERVICE: [{"targets": targets}], ON_A_GPU: [{"targets": [exporter.address]}]}
        (folder / "prometheus").mkdir()
        stack.enter_context(under_load(servers))
        yield stack.enter_context(prometheus(folder / "prometheus", static, FACTOR))


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


@pytest.mark.slow
def test_every_panel_has_data_and_replicas_add_up(tmp_path: Path) -> None:
    with two_replicas(tmp_path) as server:
        wait_for(lambda: len(server.query('job:anyo_errors:ratio_rate5m{job="anyo"}')) == 1, lambda: "no data")
        # A busy machine may need a few scrapes more before every rate has two samples.
        wait_for(lambda: not without_data(server), lambda: "\n".join(without_data(server)), patience_s=20)
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
