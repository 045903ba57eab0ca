"""Dockerfile and compose files: what can be seen without an engine. `scripts/compose_check.py` runs them."""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import secrets_for_compose
from service.http.uvicorn_adapter import LAST_ANSWERS_S
from service.settings import load_settings
from testing.redis_server import free_port
from testing.running import process
from tests.deploy.prometheus import ROOT

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
    """What compose makes of ${NAME:-default} and ${NAME-default} where nothing is set."""
    return re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)


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
    for name in ("service", "ray", "trainer"):
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
    files: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = compose(*files)
    assert services["service"]["depends_on"]["trainer"] == {"condition": "service_completed_successfully"}
    assert services["service"]["depends_on"]["redis"] == {"condition": "service_healthy"}
    for name, service in services.items():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), name
    secrets_for_compose.make(tmp_path)
    for name, value in services["service"]["environment"].items():
        monkeypatch.setenv(name, defaults(str(value)).replace("/run/secrets", str(tmp_path)))
    assert os.environ["ANYO_ARTIFACTS_ROOT"] == "/artifacts"
    monkeypatch.setenv("ANYO_ARTIFACTS_ROOT", str(tmp_path))  # a folder that is there
    settings = load_settings()
    password = (tmp_path / "redis_password").read_text()
    assert settings.store == f"redis://:{password}@redis:6379/0" and settings.artifacts == (Path("/artifacts/demo"),)
    grace = int(services["service"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.shutdown_delay_seconds + settings.drain_seconds + LAST_ANSWERS_S
    assert settings.device == ("cuda" if len(files) == 2 else "cpu")
    assert "always" in services["redis"]["command"].split()


def test_every_container_is_confined() -> None:
    """Its root is read-only, it gains no rights, it has limits, and it is started again as it should be."""
    for name, service in compose("docker-compose.yml").items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys(), name
        assert service["restart"] == ("no" if name in ("trainer", "load") else "unless-stopped"), name
        image = defaults(service["image"])
        assert image.startswith("anyo-") or re.search(r":v?\d+\.\d+\.\d+", image), f"{image} is a moving tag"
    for line in (line for line in instructions() if line.startswith("ARG PYTHON=")):
        assert re.search(r":\d+\.\d+\.\d+-", line)


def test_qdrant_is_confined_and_reached_by_the_service_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    services = compose("docker-compose.yml", "docker-compose.qdrant.yml")
    engine, service = services["qdrant"], services["service"]
    assert engine["read_only"] is True and engine["cap_drop"] == ["ALL"] and not engine.get("ports")
    assert engine["networks"] == ["back"] and "back" in service["networks"]
    assert {"mem_limit", "cpus", "pids_limit"} <= engine.keys()
    assert re.search(r":v\d+\.\d+\.\d+", defaults(engine["image"]))
    assert service["depends_on"]["qdrant"] == {"condition": "service_healthy"}
    monkeypatch.setenv("ANYO_QDRANT_URL", service["environment"]["ANYO_QDRANT_URL"])
    assert load_settings().qdrant_url == "http://qdrant:6333"
    assert "--extra qdrant" in service["build"]["args"]["EXTRAS"]
    (kept,) = (line for line in stage("serving") if "grpcio" in line)
    assert 'case "$EXTRAS" in *qdrant*) ;;' in kept, "the client needs gRPC"


def test_only_the_service_reaches_redis_and_with_a_password(tmp_path: Path) -> None:
    whole = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert whole["networks"]["back"] == {"internal": True}
    on = {name: service["networks"] for name, service in whole["services"].items()}
    assert {name for name, networks in on.items() if "back" in networks} == {"redis", "service"}
    assert on["redis"] == ["back"] and not whole["services"]["redis"].get("ports")
    assert secrets_for_compose.make(tmp_path) and not secrets_for_compose.make(tmp_path)
    made = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {Path(secret["file"]).name for secret in whole["secrets"].values()} == made.keys()
    assert made["redis.conf"] == f"requirepass {made['redis_password']}\n" and len(made["redis_password"]) == 64
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    for name, service in whole["services"].items():
        assert set(service.get("secrets", ())) == {
            "redis": {"redis_conf", "redis_password"},
            "service": {"store_url"},
            "alertmanager": {"alert_url"},
        }.get(name, set())
    ignored = subprocess.run(["git", "check-ignore", "-q", "deploy/secrets/store_url"], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128), "128: not in a repository of git"


def test_what_redis_is_told_is_what_a_real_one_obeys(tmp_path: Path) -> None:
    """Its own program with the command of the file: no answer without the password, one with it."""
    service = compose("docker-compose.yml")["redis"]
    folder = tmp_path / "secrets"
    secrets_for_compose.make(folder)
    port = str(free_port())
    command = service["command"].replace("/run/secrets/redis_conf", str(folder / "redis.conf"))
    command = command.replace("0.0.0.0", "127.0.0.1").replace("/data", str(tmp_path))
    server = subprocess.Popen([*shlex.split(command), "--port", port], stdout=subprocess.DEVNULL)
    try:
        until_it_answers(port)
        ask = ["redis-cli", "-p", port, "ping"]
        assert "NOAUTH" in subprocess.run(ask, capture_output=True, text=True, check=False).stdout
        check = service["healthcheck"]["test"][1].replace("$$", "$").replace("redis-cli", f"redis-cli -p {port}")
        check = check.replace("/run/secrets/redis_password", str(folder / "redis_password"))
        assert subprocess.run(["sh", "-c", check], check=False, capture_output=True).returncode == 0
        (folder / "redis_password").write_text("another")
        assert subprocess.run(["sh", "-c", check], check=False, capture_output=True).returncode == 1
    finally:
        server.terminate()
        server.wait()


def until_it_answers(port: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
            return
        time.sleep(0.05)
    raise AssertionError("redis-server does not listen")


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
    for files in (
        [base := "docker-compose.yml"],
        [base, "docker-compose.gpu.yml"],
        [base, "docker-compose.qdrant.yml"],
    ):
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
