"""Hostile artifacts, hot-loaded into a service that answers meanwhile.

    python -m benchmarks.faults.hostile_artifacts [--artifacts 500] [--seed 0] [--base FOLDER …] [--first 0]

Each is a whole artifact with one seeded change (`testing/hostile.py`), sealed again so that its hashes are
right. It is loaded with `POST /artifacts/{name}/load` into one service, whose /livez and memory are watched. A load is
either harmless (200, and unloaded again) or refused with one sentence in the one error shape (404, 409); nothing else
changes: the service lives, answers the same, and no code of an artifact runs. The last line is one JSON object.

Without `--base`, a small transformer over item ids is made. An artifact of every recipe makes for all kinds of changes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil

from benchmarks.lib.results import ResultFile
from benchmarks.lib.server import PATIENCE_S, Server
from testing.hostile import KINDS, MARKER, Unfit, make

MIB = 1 << 20
LONGEST_SENTENCE = 2200
EVERY_S = 0.02
# Of a trial: Python with its libraries, before it reads anything of the artifact.
LIBRARIES_MIB = 700

RESULT = ResultFile(__file__, __doc__)


def poll(url: str, ended: Event, sender: Connection) -> None:
    """Ask for /livez until `ended` is set, then send the waits [ms] and the failures. Runs in a process of its own.

    In the benchmark's process it would also wait for the thread that makes the next artifact.
    """
    address = urlsplit(url)
    waits_ms: list[float] = []
    failed: list[str] = []
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE_S)
    while not ended.wait(EVERY_S):
        started = time.perf_counter()
        try:
            connection.request("GET", "/livez")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            failed.append(f"/livez: {error!r}")
            connection.close()
            continue
        waits_ms.append(1000 * (time.perf_counter() - started))
        if answer.status != 200:
            failed.append(f"/livez: {answer.status}")
    connection.close()
    sender.send((waits_ms, failed))


@dataclass
class Watch:
    """Polls /livez from a process of its own, and the memory of the service and its children in a thread."""

    server: Server
    waits_ms: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    peak_service_bytes: int = 0
    failed: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch while the block runs."""
        spawn = multiprocessing.get_context("spawn")
        ended = spawn.Event()
        receiver, sender = spawn.Pipe(duplex=False)
        poller = spawn.Process(target=poll, args=(self.server.url, ended, sender), daemon=True)
        poller.start()
        memory = threading.Thread(target=self._memory, daemon=True)
        memory.start()
        try:
            yield self
        finally:
            self._ended.set()
            ended.set()
            memory.join()
            if receiver.poll(PATIENCE_S):
                self.waits_ms, failed = receiver.recv()
                self.failed += failed
            else:
                self.failed.append("/livez: the process that polls it gave no report")
            poller.join()

    def _memory(self) -> None:
        service = psutil.Process(self.server.process.pid)
        while not self._ended.wait(2 * EVERY_S):
            with contextlib.suppress(psutil.Error):
                own = service.memory_info().rss
                total = own
                for child in service.children(recursive=True):
                    with contextlib.suppress(psutil.Error):
                        total += child.memory_info().rss
                self.peak_service_bytes = max(self.peak_service_bytes, own)
                self.peak_bytes = max(self.peak_bytes, total)


def plan(bases: Sequence[Path], number: int, seed: int) -> tuple[str, Path, random.Random]:
    """The kind of change, the base and the random numbers of one hostile artifact: the same at every run."""
    rng = random.Random(f"{seed}-{number}")
    kinds = list(KINDS)
    random.Random(seed + number // len(kinds)).shuffle(kinds)
    return kinds[number % len(kinds)], rng.choice(list(bases)), rng


def made(bases: Sequence[Path], root: Path, number: int, seed: int) -> tuple[str, Path] | None:
    """Write one hostile artifact; None where no base has a file of the kind that would be changed."""
    how, first, rng = plan(bases, number, seed)
    others = [base for base in bases if base != first]
    rng.shuffle(others)
    for base in (first, *others):
        folder = root / f"h{number:04d}-{how.replace('_', '-')}-{base.name}"
        try:
            make(base, folder, how, rng)
        except Unfit:
            continue
        return f"{how} of {base.name}", folder
    return None


def mistake(answer: httpx.Response) -> str | None:
    """The fault of an answer to a load, or None."""
    if answer.status_code == 200:
        return None
    if answer.status_code not in (404, 409):
        return f"status {answer.status_code}: {answer.text[:300]}"
    try:
        error = answer.json()["error"]
        message, code = str(error["message"]), error["code"]
    except (ValueError, KeyError, TypeError):
        return f"not the error shape: {answer.text[:300]}"
    if not message.isprintable() or len(message) > LONGEST_SENTENCE or not message.strip():
        return f"not one printable sentence ({code}): {message[:300]!r}"
    if "Traceback" in message or "ended with signal" in message:
        return f"the trial broke: {message[:300]}"
    return None


def ask(server: Server, histories: Sequence[Sequence[str]]) -> list[list[str]]:
    """The answers of what serves."""
    found = []
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
        for history in histories:
            answer = client.post("/recommend", json={"history": list(history), "k": 10})
            found.append([item["item_id"] for item in answer.raise_for_status().json()["items"]])
    return found


def run(
    serving: Path,
    bases: Sequence[Path],
    numbers: Sequence[int],
    seed: int,
    *,
    memory: int,
    seconds: float,
    program: str,
) -> dict[str, Any]:
    """Load them one after another; returns the figures and what was found wrong."""
    statuses: Counter[int] = Counter()
    found: list[str] = []
    durations: list[float] = []
    highest = 0
    harmless: list[str] = []
    with tempfile.TemporaryDirectory(prefix="anyo-hostile-") as name:
        root = Path(name)
        settings = {"artifacts_root": root, "load_memory_bytes": memory, "load_seconds": seconds, "log_level": "info"}
        with Server(serving, settings, program=program) as server:
            cases = json.loads((serving / "golden.json").read_text())
            histories = [[item for item in case["history"] if isinstance(item, str)] for case in cases[:3]]
            expected = ask(server, histories)
            with Watch(server).watching() as watch:
                time.sleep(1)
                baseline, baseline_service = watch.peak_bytes, watch.peak_service_bytes
                for number in numbers:
                    if (hostile := made(bases, root, number, seed)) is None:
                        continue
                    how, folder = hostile
                    watch.peak_bytes = 0
                    started = time.monotonic()
                    answer = server.post(f"/artifacts/{folder.name}/load")
                    durations.append(time.monotonic() - started)
                    statuses[answer.status_code] += 1
                    wrong = mistake(answer)
                    if answer.status_code == 200:
                        harmless.append(how)
                        gone = server.post(f"/artifacts/{folder.name}/unload")
                        if gone.status_code != 200:
                            wrong = f"cannot be unloaded: {gone.text[:300]}"
                    grown = watch.peak_service_bytes - baseline_service
                    budget = baseline + grown + memory + LIBRARIES_MIB * MIB
                    highest = max(highest, watch.peak_bytes)
                    if watch.peak_bytes > budget:
                        wrong = f"took {watch.peak_bytes // MIB} MiB; the budget is {budget // MIB}"
                    said = answer.text if answer.status_code == 200 else answer.json()["error"]["message"]
                    print(f"{number} {how}: {answer.status_code} {durations[-1]:.1f} s "
                          f"{watch.peak_bytes // MIB} MiB {said[:250]}", flush=True)  # fmt: skip
                    if wrong is not None:
                        found.append(f"{number} {how}: {wrong}")
                    if server.process.poll() is not None:
                        found.append(f"{number} {how}: the service ended with {server.process.returncode}")
                        break
                    if (root / MARKER).exists():
                        found.append(f"{number} {how}: code of the artifact ran")
                        (root / MARKER).unlink()
                    if ask(server, histories) != expected:
                        found.append(f"{number} {how}: what serves answers otherwise")
                    shutil.rmtree(folder)
            found += watch.failed
            errors = [line for line in server.log().splitlines() if "Traceback" in line or '"level":"error"' in line]
            found += [f"the log holds an error: {line[:1000]}" for line in errors]
            waits = np.array(watch.waits_ms)
            return {
                "artifacts": len(durations), "kinds": len(KINDS), "statuses": dict(sorted(statuses.items())),
                "harmless": dict(Counter(how.split(" of ")[0] for how in harmless)), "found": found,
                "livez_ms": {f"p{q}": round(float(np.percentile(waits, q)), 1) for q in (50, 99, 99.9, 100)},
                "livez_polls": len(waits), "livez_over_100_ms": int((waits > 100).sum()),
                "load_s": {f"p{q}": round(float(np.percentile(durations, q)), 1) for q in (50, 99, 100)},
                "baseline_mib": baseline // MIB, "peak_mib": highest // MIB,
                "peak_service_mib": watch.peak_service_bytes // MIB,
                "load_memory_mib": memory // MIB,
            }  # fmt: skip


def main() -> int:
    """Run and report; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serving", type=Path, required=True, help="dense artifact that serves meanwhile")
    parser.add_argument(
        "--base", type=Path, action="append", help="whole artifact to change (default: the one that serves)"
    )
    parser.add_argument("--artifacts", type=int, default=500, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first, to divide a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--memory", type=int, default=1024, help="ANYO_LOAD_MEMORY_BYTES, in MiB")
    parser.add_argument("--seconds", type=float, default=60.0, help="ANYO_LOAD_SECONDS")
    parser.add_argument(
        "--forked", action="store_true", help="fork trials from a process with the libraries (forked_trials.py): faster"
    )
    RESULT.add_option(parser)
    options = parser.parse_args()
    started = time.monotonic()
    numbers = range(options.first, options.first + options.artifacts)
    figures = run(
        options.serving, options.base or [options.serving], numbers, options.seed, memory=options.memory * MIB,
        seconds=options.seconds,
        program="benchmarks.faults.forked_trials" if options.forked else "service",
    )  # fmt: skip
    RESULT.publish({**figures, "seconds": round(time.monotonic() - started, 1)}, options.result)
    return 1 if figures["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
