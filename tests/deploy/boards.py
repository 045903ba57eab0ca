"""The shipped dashboards as data, and a Prometheus that has something to show in each of their panels."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from testing.fake_parts import item_id
from testing.running import Process, process
from tests.deploy.exporter import Exporter, Replica
from tests.deploy.prometheus import ROOT, Prometheus, prometheus

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
    panel_id: int
    expression: str
    instant: bool

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
            yield Query(board["uid"], row, panel["title"], panel["id"], target["expr"], target.get("instant") is True)


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
