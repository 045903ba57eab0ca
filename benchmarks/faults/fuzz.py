"""Sends generated requests and mutated bytes to a real process and looks for anything that is not in its description.

    python -m benchmarks.faults.fuzz [--cases 20000] [--bodies 100000] [--artifact DIR] [--seed 0]

First schemathesis, with all its checks, over every endpoint of `/openapi.json`; then valid bodies with bytes changed,
over plain sockets. An answer must have a status that the description names for its endpoint, 5xx only 503 and 504, and
a body that fits the schema. Resident memory may grow by `--growth` after the first tenth of the bodies. The last line
is one JSON object; the exit code is 1 if anything was found.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import Server
from service.http import schemas

ROOT = Path(__file__).resolve().parents[2]
# `ignored_auth` makes up one of the two headers that carry a key and leaves the right key in the other, which opens as
# well; who gets in is a test of its own (tests/service/http/test_rights.py).
# Appending an event to a forgotten user begins a new history, which this check takes for a deletion that failed. That
# nothing is left right after a deletion is a test of its own.
EXCLUDED_CHECK = "use_after_free,ignored_auth"
CONFIG = Path(__file__).with_name("schemathesis.toml")
PATIENCE_S = 20.0
SHOWN = 20  # mistakes that are printed
# Caches that fill up during the run would look like a leak.
SMALL = {"user_cache_entries": 64, "title_cache_entries": 64, "feedback_entries": 64, "store_history": 50}

SEEDS: tuple[tuple[str, str, bytes], ...] = (
    ("POST", "/recommend", b'{"history":["item-0001",{"title":"A thing"},"item-0007"],"user_id":"u1","k":5}'),
    ("POST", "/recommend", b'{"history":["item-0002"],"k":1000,"exclude":["item-0003"],"categories":["travel"]}'),
    (
        "POST",
        "/recommend/generative",
        b'{"history":["item-0001",{"title":"A thing"}],"k":5,"beams":3,"max_new_tokens":9}',
    ),
    ("POST", "/compare", b'{"history":["item-0002"],"user_id":"u1","k":7,"recipe":"fake-writing","beams":2}'),
    ("POST", "/users/u1/events", b'{"events":[{"item_id":"item-0001","event_id":"e1","timestamp":1750000000.5}]}'),
    ("POST", "/feedback", b'{"request_id":"abc","item_id":"item-0001"}'),
    ("PUT", "/traffic", b'{"weights":{"fake":0.9},"shadow":null}'),
)
TOKENS = (
    b"\x00", b"\xff\xfe", b"\\ud800", b"\\u0000", b'"', b"{", b"}", b"[" * 300, b"]", b"1e999", b"-0", b"NaN", b"null",
    b"9" * 400, b"true", b'"k":', b'{"title":"', b"\xf0\x9f\x98\x80", b"\xc3", b",", b"a" * 3000, b"\\", b"\r\n", b"-1",
)  # fmt: skip
MODELS: dict[str, type[BaseModel]] = {
    "/recommend": schemas.RecommendAnswer,
    "/recommend/generative": schemas.GenerativeAnswer,
    "/compare": schemas.CompareAnswer,
    "/users/u1/events": schemas.AppendAnswer,
    "/feedback": schemas.FeedbackAnswer,
    "/traffic": schemas.TrafficAnswer,
}


# -- schemathesis ------------------------------------------------------------------------------------------------

RESULT = ResultFile(__file__, __doc__)


def generated(url: str, admin_key: str, cases: int, seed: int) -> tuple[int, list[str]]:
    """Run schemathesis until `cases` requests have been sent; returns how many, and what it found."""
    sent = 0
    found: list[str] = []
    while sent < cases and not found:
        # Each operation gets so many in every phase.
        examples = max(10, min(1000, (cases - sent) // 64))
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [
                str(Path(sys.executable).with_name("schemathesis")), "--no-color", "--config-file", str(CONFIG), "run",
                f"{url}/openapi.json", "--header", f"X-API-Key: {admin_key}",
                "--header", "content-type: application/json",
                "--checks", "all", "--exclude-checks", EXCLUDED_CHECK,
                "--seed", str(seed), "--max-examples", str(examples),
                "--continue-on-failure", "--phases", "examples,coverage,fuzzing,stateful", "--warnings", "off",
                "--suppress-health-check", "all", "--report", "json", "--report-json-path", str(report),
                "--request-timeout", str(PATIENCE_S), "--generation-database", "none", "--output-truncate", "true",
            ]  # fmt: skip
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                found.append("\n".join(line[:500] for line in done.stdout.splitlines()[:200]) + done.stderr[-2000:])
            match = re.search(r"(\d+) generated", done.stdout)
            if match is None:
                found.append(
                    f"schemathesis did not say how many cases it made: {done.stdout[-2000:]}{done.stderr[-500:]}"
                )
                break
            sent += int(match.group(1))
        seed += 1
    return sent, found


# -- bytes -------------------------------------------------------------------------------------------------------


def mutate(rng: random.Random, body: bytes) -> bytes:
    """Return `body` with a few bytes changed."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[place : place + rng.randrange(1, 9)]
            case 2:
                data[place:place] = rng.choice(TOKENS)
            case 3:
                data[place : place + rng.randrange(1, 9)] = rng.choice(TOKENS)
            case 4:
                start = rng.randrange(len(data) + 1)
                data[place:place] = data[start : start + rng.randrange(1, 40)]
            case _:
                data[place:place] = rng.randbytes(rng.randrange(1, 9))
    return bytes(data)


class Client:
    """One connection that is opened again when the other side closes it."""

    def __init__(self, url: str, admin_key: str) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "127.0.0.1", address.port or 80)
        self._admin_key = admin_key
        self._socket: socket.socket | None = None
        self._rest = b""

    def send(self, method: str, path: str, body: bytes, *, chunked: bool) -> tuple[int, bytes]:
        """Send a request and return status and body of the answer; raises ConnectionError."""
        head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n".encode()
        head += f"x-api-key: {self._admin_key}\r\n".encode()
        if chunked:
            middle = len(body) // 2
            pieces = [piece for piece in (body[:middle], body[middle:]) if piece]
            framed = b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"
            request = head + b"transfer-encoding: chunked\r\n\r\n" + framed
        else:
            request = head + f"content-length: {len(body)}\r\n\r\n".encode() + body
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=PATIENCE_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(request)
        return self._read()

    def _read(self) -> tuple[int, bytes]:
        assert self._socket is not None
        data = self._rest
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, rest = data.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        length = int(found.group(1)) if found else 0
        while len(rest) < length:
            rest += self._more()
        self._rest = rest[length:]
        if re.search(rb"(?i)\r\nconnection: *close", head):
            self.close()
        return int(head.split(b" ", 2)[1]), rest[:length]

    def _more(self) -> bytes:
        assert self._socket is not None
        block = self._socket.recv(262_144)
        if not block:
            self.close()
            raise ConnectionError("closed without an answer")
        return block

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""


def documented(url: str) -> dict[tuple[str, str], set[int]]:
    """Return the statuses that the description names for each endpoint of `SEEDS`."""
    paths = httpx.get(f"{url}/openapi.json", timeout=PATIENCE_S).json()["paths"]
    template = {path: path.replace("u1", "{user_id}") for _, path, _ in SEEDS}
    return {
        (method, path): {int(status) for status in paths[template[path]][method.lower()]["responses"]}
        for method, path, _ in SEEDS
    }


def mistake(method: str, path: str, status: int, answer: bytes, known: set[int]) -> str | None:
    """Return what is wrong with an answer, or None."""
    if status >= 500 and status not in (503, 504):
        return f"status {status}: {answer[:300]!r}"
    if status not in known:
        return f"undocumented status {status}: {answer[:300]!r}"
    try:
        (MODELS[path] if status == 200 else schemas.ErrorAnswer).model_validate_json(answer)
    except ValidationError as error:
        return f"status {status} does not fit its schema: {error.errors()[0]}: {answer[:300]!r}"
    return None


def mutated(server: Server, bodies: int, seed: int) -> tuple[Counter[int], list[str], int, int]:
    """Send mutated bodies; returns statuses, mistakes, and resident memory after a tenth and at the end."""
    rng, client, known = random.Random(seed), Client(server.url, server.admin_key), documented(server.url)
    statuses: Counter[int] = Counter()
    found: list[str] = []
    early = 0
    for number in range(bodies):
        method, path, valid = rng.choice(SEEDS)
        body = mutate(rng, valid)
        try:
            status, answer = client.send(method, path, body, chunked=rng.random() < 0.1)
        except OSError as error:
            client.close()
            found.append(f"{method} {path} {body!r}: no answer ({error!r})")
            if server.process.poll() is not None:
                break
            continue
        statuses[status] += 1
        if (wrong := mistake(method, path, status, answer, known[method, path])) is not None:
            found.append(f"{method} {path} {body[:300]!r}: {wrong}")
        if number == bodies // 10:
            early = server.resident_kib()
    client.close()
    return statuses, found, early, server.resident_kib()


def main() -> int:
    """Run both; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="requests that schemathesis makes")
    parser.add_argument("--bodies", type=int, default=100_000, help="mutated bodies")
    parser.add_argument("--artifact", type=Path, default=None, help="artifact to serve (default: parts made in memory)")
    parser.add_argument("--growth", type=float, default=0.02, help="largest growth of resident memory, as a share")
    parser.add_argument("--seed", type=int, default=0)
    RESULT.add_option(parser)
    options = parser.parse_args()
    started = time.monotonic()
    with Server(options.artifact, {**SMALL, "log_level": "error"}) as server:
        sent, found = generated(server.url, server.admin_key, options.cases, options.seed) if options.cases else (0, [])
        statuses, more, early, late = mutated(server, options.bodies, options.seed)
        found += more
        if server.process.poll() is not None:
            found.append(f"the server ended with code {server.process.returncode}")
        elif httpx.get(f"{server.url}/livez", timeout=PATIENCE_S).status_code != 200:
            found.append("liveness is red")
    growth = late / early - 1 if early else 0.0
    if growth > options.growth:
        found.append(f"resident memory grew from {early} to {late} KiB, by {100 * growth:.1f} %")
    for line in found[:SHOWN]:
        print(line)
    RESULT.publish({
        "cases": sent, "bodies": sum(statuses.values()), "statuses": dict(sorted(statuses.items())),
        "resident_kib": [early, late], "growth": round(growth, 4), "found": len(found),
        "seconds": round(time.monotonic() - started, 1),
    }, options.result)  # fmt: skip
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
