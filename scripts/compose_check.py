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
import re
import socket
import subprocess
import sys
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
    name = artifacts["items"][0]["name"]
    item = history[0]
    status, first = call(url + "/recommend", "POST", {"history": history, "k": 3})
    check.say(
        status == 200, f"the first answer: {[row['title'] for row in first['items']] if status == 200 else first}"
    )
    taken = {"request_id": first["request_id"], "item_id": first["items"][0]["item_id"]} if status == 200 else {}
    # No generative artifact is loaded, and no admin key set: both are said.
    calls: list[tuple[str, str, str, Any, int]] = [
        ("POST", "/feedback", "", taken, 200),
        ("GET", "/feedback/summary", "", None, 200),
        ("POST", "/recommend/generative", "", {"history": history, "k": 3}, 404),
        ("POST", "/compare", "", {"history": history, "k": 3}, 404),
        ("POST", "/recommend/batch", "", {"requests": [{"history": history, "k": 3}]}, 200),
        ("GET", "/popular", "", None, 200),
        ("POST", "/rank", "", {"history": history, "candidates": history}, 200),
        ("POST", "/users/{user_id}/events", "someone", {"events": [{"item_id": item, "event_id": "1"}]}, 200),
        ("GET", "/users/{user_id}", "someone", None, 200),
        ("POST", "/recommend", "", {"user_id": "someone", "k": 3}, 200),
        ("GET", "/users", "", None, 200),
        ("DELETE", "/users/{user_id}", "someone", None, 200),
        ("GET", "/items", "", None, 200),
        ("GET", "/items/{item_id}", item, None, 200),
        ("GET", "/items/{item_id}/similar", item, None, 200),
        ("POST", "/items", "", None, 403),
        ("PUT", "/items/{item_id}", item, {"title": "Another title"}, 403),
        ("PATCH", "/items/{item_id}", item, {"title": "Another title"}, 403),
        ("DELETE", "/items/{item_id}", item, None, 403),
        ("GET", "/artifacts", "", None, 200),
        ("GET", "/artifacts/{name}", name, None, 200),
        ("POST", "/artifacts/{name}/load", name, None, 403),
        ("POST", "/artifacts/{name}/unload", name, None, 403),
        ("POST", "/artifacts/{name}/activate", name, None, 403),
        ("GET", "/traffic", "", None, 200),
        ("PUT", "/traffic", "", {"weights": {}}, 403),
        ("GET", "/livez", "", None, 200),
        ("GET", "/readyz", "", None, 200),
        ("GET", "/metrics", "", None, 200),
        ("GET", "/", "", None, 200),
        ("GET", "/docs", "", None, 200),
    ]
    for method, path, value, body, expected in calls:
        status, _ = call(url + re.sub(r"\{\w+\}", value, path), method, body)
        check.say(status == expected, f"{method} {path} -> {status}")
    known = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    missed = known - {(method, path) for method, path, *_ in calls}
    check.say(
        not missed, f"all {len(known)} operations of openapi.json called" if not missed else f"not called: {missed}"
    )


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


def walls(check: Check) -> None:
    """Redis asks for a password, and who watches cannot reach it."""
    _, said = check.compose("exec", "-T", "redis", "redis-cli", "ping")
    check.say("NOAUTH" in said, "Redis refuses whoever has no password")
    probe = "import socket; socket.create_connection(('redis', 6379), 3)"
    code, _ = check.compose("exec", "-T", "service", "python", "-c", probe)
    check.say(code == 0, "the service reaches Redis")
    code, _ = check.compose(
        "run", "--rm", "-T", "--no-deps", "--entrypoint", "python", "trainer", "-c", probe, limit_s=PATIENCE_S
    )
    check.say(code != 0, "the front network does not reach Redis")


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
    ports = {name: free_port() for name in ("PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "GRAFANA_PORT")}
    check = Check({**ports, "TRAIN_ARGS": options.train_args})
    url = f"http://127.0.0.1:{ports['PORT']}"
    started = time.monotonic()
    check.run(sys.executable, "scripts/secrets_for_compose.py")
    check.compose("down", "--volumes", "--remove-orphans")
    try:
        code, _ = check.compose("build", limit_s=LONGEST_BUILD_S, shown=True)
        check.say(code == 0, f"built after {time.monotonic() - started:.0f} s")
        sizes = images(check)
        names = ["service", "prometheus", "alertmanager", *([] if options.no_grafana else ["grafana"])]
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
        alertmanager = f"http://127.0.0.1:{ports['ALERTMANAGER_PORT']}/api/v2/status"
        check.say(call(alertmanager)[0] == 200, "Alertmanager answers")
        if not options.no_grafana:
            status, answer = call(f"http://127.0.0.1:{ports['GRAFANA_PORT']}/api/search?tag=anyo")
            check.say(status == 200 and len(answer) == 5, "Grafana shows five dashboards without a login")
        walls(check)
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
