"""From a clean Docker engine to the first answer, with no manual step, and everything taken down again.

    python scripts/compose_check.py [--keep] [--no-grafana] [--train-args '--time-budget 2']

Builds the images, starts docker-compose.yml under a project of its own (fresh volumes, free ports), waits for
health, calls every endpoint, asks Prometheus for the service, looks into the container (user, read-only root, no
compiler, no training code), stops the service with SIGTERM, and removes it all. The last line is one JSON object
with what was found; the exit code is 1 if anything was not as it should be. Standard library only; needs
`docker` and `docker-compose`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "anyo-check"
LONGEST_BUILD_S = 3600
LONGEST_TRAINING_S = 3600
PATIENCE_S = 180


class Check:
    """Runs steps, prints them, and remembers what failed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = {**os.environ, **environment}
        self.failed: list[str] = []

    def say(self, right: bool, what: str) -> None:
        """Print one finding; a wrong one is remembered."""
        print(f"[compose] {'ok   ' if right else 'WRONG'} {what}", flush=True)
        if not right:
            self.failed.append(what)

    def run(self, *command: str, limit_s: float = PATIENCE_S, shown: bool = False) -> tuple[int, str]:
        """Return the exit code and the output of a command."""
        finished = subprocess.run(
            command, cwd=ROOT, env=self.environment, text=True, timeout=limit_s, check=False,
            stdout=None if shown else subprocess.PIPE, stderr=None if shown else subprocess.STDOUT,
        )  # fmt: skip
        return finished.returncode, (finished.stdout or "").strip()

    def compose(self, *words: str, limit_s: float = PATIENCE_S, shown: bool = False) -> tuple[int, str]:
        """Run docker-compose on the project of this check."""
        return self.run("docker-compose", "-p", PROJECT, *words, limit_s=limit_s, shown=shown)


def free_port() -> str:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def call(url: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
    """Return the status and the JSON (or text) of an answer; 0 where nobody answers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


def wait_for(url: str, limit_s: float) -> bool:
    """Wait until a GET is answered with 200."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if call(url)[0] == 200:
            return True
        time.sleep(1)
    return False


def endpoints(check: Check, url: str) -> None:
    """Call every endpoint of the API."""
    _, described = call(url + "/openapi.json")
    _, artifacts = call(url + "/artifacts")
    history = artifacts["items"][0]["examples"][0]
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/recommend", {"history": history, "k": 3}),
        ("POST", "/users/someone/events", {"events": [{"item_id": history[0], "event_id": "1"}]}),
        ("GET", "/users/someone", None),
        ("POST", "/recommend", {"user_id": "someone", "k": 3}),
        ("GET", "/users", None),
        ("DELETE", "/users/someone", None),
        ("GET", "/items?limit=1", None),
        ("GET", f"/items/{history[0]}", None),
        ("GET", "/artifacts", None),
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/metrics", None),
        ("GET", "/", None),
    ]
    for method, path, body in calls:
        status, answer = call(url + path, method, body)
        shown = [item["title"] for item in answer["items"]] if path == "/recommend" and status == 200 else ""
        check.say(status == 200, f"{method} {path} -> {status} {shown}")
    known = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    check.say(len(known) <= len(calls), f"{len(known)} operations in openapi.json, {len(calls)} calls made")


def inside(check: Check) -> None:
    """Look at the running container: who it runs as, what it may write, what it lacks."""
    wanted = {
        "runs as user 10001": ("id", "-u"),
        "the root is read-only": ("touch", "/app/x"),
        "no compiler": ("sh", "-c", "command -v cc gcc g++ clang"),
        "no training code": ("python", "-c", "import training"),
        "no pip": ("python", "-m", "pip"),
    }
    for what, command in wanted.items():
        code, output = check.compose("exec", "-T", "service", *command)
        check.say(output == "10001" if what.startswith("runs") else code != 0, what)


def images(check: Check) -> dict[str, Any]:
    """Return the size of each image and of its layers, in MB."""
    sizes: dict[str, Any] = {}
    for image in ("anyo-service:cpu", "anyo-trainer:cpu"):
        _, total = check.run("docker", "image", "inspect", "--format", "{{.Size}}", image)
        _, history = check.run("docker", "history", "--no-trunc", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
        sizes[image] = round(int(total) / 1e6)
        print(f"[compose] {image}: {sizes[image]} MB")
        for line in history.splitlines():
            if not line.startswith("0B"):
                print(f"[compose]     {line[:110]}")
    return sizes


def main() -> int:
    """Build, start, check, remove; returns the exit code."""
    parser = argparse.ArgumentParser(description="Check docker-compose.yml from a clean state.")
    parser.add_argument("--keep", action="store_true", help="leave everything running")
    parser.add_argument("--no-grafana", action="store_true", help="where its image cannot be had")
    parser.add_argument("--train-args", default="", help="more arguments for the one-shot training")
    options = parser.parse_args()
    ports = {name: free_port() for name in ("PORT", "PROMETHEUS_PORT", "GRAFANA_PORT")}
    check = Check({**ports, "TRAIN_ARGS": options.train_args})
    url = f"http://127.0.0.1:{ports['PORT']}"
    started = time.monotonic()
    check.compose("down", "--volumes", "--remove-orphans")
    try:
        code, _ = check.compose("build", limit_s=LONGEST_BUILD_S, shown=True)
        check.say(code == 0, f"built after {time.monotonic() - started:.0f} s")
        sizes = images(check)
        names = ["service", "prometheus", *([] if options.no_grafana else ["grafana"])]
        code, output = check.compose("up", "-d", *names, limit_s=LONGEST_TRAINING_S)
        check.say(code == 0, f"started after {time.monotonic() - started:.0f} s")
        if code != 0:
            raise SystemExit("\n".join([output[-1000:], check.compose("logs", "--tail", "40")[1]]))
        check.say(wait_for(url + "/readyz", PATIENCE_S), f"ready after {time.monotonic() - started:.0f} s")
        endpoints(check, url)
        inside(check)
        prometheus = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query?query="
        time.sleep(35)  # two scrapes
        _, answer = call(prometheus + "anyo_ready")
        found = answer["data"]["result"] if isinstance(answer, dict) else []
        check.say(bool(found) and found[0]["value"][1] == "1", f"Prometheus sees the service: {found}")
        if not options.no_grafana:
            status, answer = call(f"http://127.0.0.1:{ports['GRAFANA_PORT']}/api/search?tag=anyo")
            check.say(status == 200 and len(answer) == 4, "Grafana shows four dashboards without a login")
        _, container = check.compose("ps", "-q", "service")
        _, health = check.run("docker", "inspect", "--format", "{{.State.Health.Status}}", container)
        check.say(health == "healthy", f"health check says {health}")
        check.compose("stop", "service")
        _, code_text = check.run("docker", "inspect", "--format", "{{.State.ExitCode}}", container)
        check.say(code_text == "0", f"SIGTERM ends the service with code {code_text}")
    finally:
        if not options.keep:
            check.compose("down", "--volumes", "--remove-orphans")
    seconds = round(time.monotonic() - started)
    print(json.dumps({"right": not check.failed, "failed": check.failed, "image_mb": sizes, "seconds": seconds}))
    return 1 if check.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
