"""Does the service answer what the offline evaluation said? Same ids, same order, for test users of a data set.

Starts ``python -m service ARTIFACT`` on 127.0.0.1, sends the histories of ``evaluate --top FILE`` over HTTP, several at
a time so that they are batched, and compares each answer with the file's list. The last line is one JSON object; the
exit status is 1 when an answer differs.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.lib.results import ResultFile

RESULT = ResultFile(__file__, __doc__)


def start(artifact: Path) -> tuple[subprocess.Popen[str], str]:
    """The running service and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "service", str(artifact), "--port", "0", "--store", "sqlite:///:memory:"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 180
    for line in process.stdout:
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        if found:
            return process, found.group()
        if time.monotonic() > deadline:
            break
    process.kill()
    raise RuntimeError("the service did not say its address")


def path_of(artifact: Path) -> str:
    """The endpoint that an artifact of its kind answers."""
    from modeling.artifact.manifest import read_manifest
    from modeling.methods import method_of

    shape = method_of(read_manifest(artifact), artifact.name)[0].shape
    return "/recommend/generative" if shape == "list" else "/recommend"


def ask(address: str, line: dict[str, Any], k: int) -> list[str]:
    """The ids the service recommends for one history; ``address`` is that of the endpoint."""
    body = json.dumps({"history": line["history"], "k": k}).encode()
    request = urllib.request.Request(address, body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return [item["item_id"] for item in json.load(answer)["items"]]


def main() -> None:
    """Compare and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("top", type=Path, help="file written by `evaluate --top`")
    parser.add_argument("--users", type=int, default=500)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=8)
    RESULT.add_option(parser)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.top.read_text().splitlines()]
    step = max(1, len(lines) // options.users)
    lines = lines[::step][: options.users]
    process, address = start(options.artifact)
    address += path_of(options.artifact)
    try:
        with ThreadPoolExecutor(options.at_once) as pool:
            answers = list(pool.map(lambda line: ask(address, line, options.k), lines))
    finally:
        process.terminate()
        process.wait(60)
    different = [
        {"user_id": line["user_id"], "offline": line["top"][: options.k], "served": answer}
        for line, answer in zip(lines, answers, strict=True)
        if answer != line["top"][: options.k]
    ]
    for one in different[:5]:
        print(json.dumps(one), file=sys.stderr)
    RESULT.publish(
        {"artifact": options.artifact.name, "users": len(lines), "different": len(different)}, options.result
    )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
