"""Alerts leave: a real Alertmanager with the shipped configuration tells the receiver what Prometheus sees."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from tests.deploy.exporter import Exporter, Replica
from tests.deploy.prometheus import ROOT, free_address, program, prometheus, wait_for

SHIPPED = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
PACKAGE = "prometheus-alertmanager"
FACTOR = 150  # five minutes take two seconds


class Chat:
    """An incoming webhook of a chat, on 127.0.0.1: keeps the titles and texts that came."""

    def __init__(self) -> None:
        told: list[tuple[str, str]] = []
        self.told = told

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                (attachment,) = body["attachments"]
                told.append((attachment["title"], attachment["text"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def titles(self) -> set[str]:
        return {title for title, _ in self.told}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def alertmanager(folder: Path, url: str) -> Iterator[str]:
    """Run the shipped configuration without its waits, sending to `url`; yields its address."""
    config = yaml.safe_load(SHIPPED.read_text())
    for route in (config["route"], *config["route"]["routes"]):
        route.update(group_wait="100ms", group_interval="500ms")
    (folder / "alert_url").write_text(url)
    config["receivers"][0]["slack_configs"][0]["api_url_file"] = str(folder / "alert_url")
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config))
    address = free_address()
    command = [
        program(PACKAGE, PACKAGE), f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/data",
        "--cluster.listen-address=", f"--web.listen-address={address}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield address
        finally:
            process.terminate()
            process.wait(30)


def test_amtool_accepts_the_configuration() -> None:
    command = [program("amtool", PACKAGE), "check-config", str(SHIPPED)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_compose_and_the_configurations_agree_on_the_address_and_the_secret() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    scraping = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (sent_to,) = scraping["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert sent_to.split(":")[0] in services and f":{sent_to.split(':')[1]}" in services["alertmanager"]["ports"][0]
    assert "./deploy/alertmanager:/etc/alertmanager:ro" in services["alertmanager"]["volumes"]
    (receiver,) = yaml.safe_load(SHIPPED.read_text())["receivers"]
    (secret,) = services["alertmanager"]["secrets"]
    assert receiver["slack_configs"][0]["api_url_file"] == f"/run/secrets/{secret}"


@pytest.mark.slow
def test_the_receiver_is_told_of_alerts_and_of_their_end(tmp_path: Path) -> None:
    full, gone = Replica(), Replica()
    full.change({"anyo_queue_tokens": 60_000})
    gone.up = False
    replicas = {"full": full, "gone": gone}
    for name in ("alertmanager", "prometheus"):
        (tmp_path / name).mkdir()
    with contextlib.ExitStack() as stack:
        chat = Chat()
        stack.callback(chat.close)
        exporter = Exporter(replicas)
        stack.callback(exporter.close)
        static = {
            f"anyo-{name}": [{"targets": [exporter.address], "labels": {"__metrics_path__": f"/{name}"}}]
            for name in replicas
        }
        address = stack.enter_context(alertmanager(tmp_path / "alertmanager", chat.url))
        server = stack.enter_context(prometheus(tmp_path / "prometheus", static, FACTOR, address))
        first = {"warning: AnyoQueueNearLimit of anyo-full", "critical: AnyoNoReplica of anyo-gone"}
        wait_for(lambda: chat.titles() >= first, lambda: chat.told)
        (text,) = {text for title, text in chat.told if "AnyoQueueNearLimit" in title}
        assert "91.55% full" in text
        assert "Runbook: docs/operations/runbook.md#anyoqueuenearlimit" in text
        # AnyoDown fires as well, and says nothing that AnyoNoReplica has not said.
        wait_for(lambda: ("anyo-gone", "AnyoDown") in server.firing(), server.firing)
        full.heal()
        gone.up = True
        ended = {"resolved: AnyoQueueNearLimit of anyo-full", "resolved: AnyoNoReplica of anyo-gone"}
        wait_for(lambda: chat.titles() >= first | ended, lambda: chat.told)
        assert chat.titles() == first | ended
