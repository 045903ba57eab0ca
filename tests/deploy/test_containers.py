"""Dockerfile and compose files: what can be seen without an engine. `scripts/compose_check.py` runs them."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.server import LAST_ANSWERS_S
from service.settings import load_settings
from tests.deploy.prometheus import ROOT
from tests.service.running import process

# Packages by the names under which they are imported, where these differ.
IMPORTED_AS = {"grpcio": "grpc", "tensorboard-data-server": "tensorboard_data_server"}


def instructions() -> list[str]:
    """The instructions of the Dockerfile, continued lines joined, comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def stage(name: str) -> list[str]:
    """The instructions of one stage."""
    found: list[str] = []
    inside = False
    for line in instructions():
        if line.startswith("FROM "):
            inside = line.endswith(f" AS {name}")
        elif inside:
            found.append(line)
    return found


def compose(*files: str) -> dict[str, Any]:
    """The services of compose files, later ones over earlier ones (as far as they are used here)."""
    services: dict[str, Any] = {}
    for file in files:
        for name, given in yaml.safe_load((ROOT / file).read_text())["services"].items():
            environment = {**services.get(name, {}).get("environment", {}), **given.get("environment", {})}
            services[name] = {**services.get(name, {}), **given, "environment": environment}
    return services


def defaults(text: str) -> str:
    """What compose makes of ${NAME:-default} where nothing is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def copied() -> set[str]:
    return {
        source for line in instructions() if line.startswith("COPY ") and "--from" not in line
        for source in shlex.split(line)[1:-1]
    }  # fmt: skip


def test_everything_that_is_copied_is_in_the_context_and_nothing_else() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert let_in == copied()
    for source in let_in:
        assert (ROOT / source).exists(), source
    for private in (".git", "artifacts", "data", ".venv", "tests"):
        assert not any(fnmatch.fnmatch(private, pattern) for pattern in let_in)


def test_the_image_of_the_service_has_no_training_code_and_none_of_it_runs_as_root() -> None:
    assert not any("training" in line for line in stage("service"))
    assert "COPY --from=serving /app/.venv .venv" in stage("service")
    for name in ("service", "trainer"):
        assert "USER 10001" in stage(name)
    assert not any(re.search(r"\bapt|gcc|build-essential", line) for line in instructions())


def test_nothing_that_serving_imports_was_taken_out_of_its_image() -> None:
    removed = set()
    for words in map(shlex.split, stage("serving")):
        removed |= {word for word in words if re.fullmatch(r"[a-z][a-z-]+", word)} - {"python", "pip", "uninstall"}
    names = {IMPORTED_AS.get(name, name) for name in removed}
    assert {"scipy", "tensorboard"} <= names
    for path in [path for package in ("service", "modeling", "index") for path in (ROOT / package).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in imported} & names, path


def test_the_health_check_follows_readiness(tmp_path: Path) -> None:
    check = next(line for line in stage("service") if line.startswith("HEALTHCHECK"))
    command = json.loads(check[check.index("CMD ") + 4 :])
    with process(tmp_path) as server:
        port = server.url.rsplit(":", 1)[1]
        for there, code in ((port, 0), ("9", 1)):
            finished = subprocess.run(
                [sys.executable, *command[1:]], env={"ANYO_PORT": there}, capture_output=True, timeout=30, check=False
            )
            assert finished.returncode == code, finished.stderr


@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")])
def test_compose_starts_in_order_and_publishes_to_this_machine_only(
    files: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    services = compose(*files)
    assert services["service"]["depends_on"]["trainer"] == {"condition": "service_completed_successfully"}
    assert services["service"]["depends_on"]["redis"] == {"condition": "service_healthy"}
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
        if name in ("service", "trainer", "load"):
            assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    for name, value in services["service"]["environment"].items():
        monkeypatch.setenv(name, defaults(str(value)))
    settings = load_settings()
    grace = int(services["service"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.shutdown_delay_seconds + settings.drain_seconds + LAST_ANSWERS_S
    assert settings.device == ("cuda" if len(files) == 2 else "cpu")
    assert "always" in services["redis"]["command"].split()


def test_prometheus_scrapes_what_compose_calls_the_service() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (found,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert found["names"][0] in compose("docker-compose.yml")
    assert f"ANYO_PORT={found['port']}" in " ".join(stage("service"))
    mounts = [volume.split(":")[:2] for volume in compose("docker-compose.yml")["prometheus"]["volumes"]]
    assert ["./deploy/prometheus", "/etc/prometheus"] in mounts


def test_docker_compose_reads_the_files() -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose; the Debian package docker-compose has it")
    for files in (["docker-compose.yml"], ["docker-compose.yml", "docker-compose.gpu.yml"]):
        command = ["docker-compose", *(word for file in files for word in ("-f", file)), "config", "-q"]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert finished.returncode == 0, finished.stderr


def test_the_load_sends_what_it_says_and_is_understood(tmp_path: Path) -> None:
    with process(tmp_path) as server:
        command = [sys.executable, "scripts/load.py", server.url, "--rate", "50", "--seconds", "2"]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert finished.returncode == 0, finished.stderr
        said = json.loads(finished.stdout)
        assert said["answers"] == {"200": said["sent"]}
        assert said["sent"] >= 20
