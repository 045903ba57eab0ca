"""The test ledger: one line of JSON for every evaluation on a test split, appended and never rewritten.

Whoever tunes on a test split can be seen to do so: the ledger says how often, with what configuration and
what came out. It stands beside the artifacts, `artifacts/test-ledger.jsonl`, where git does not look. The ledger of the
figures in this repository, `benchmarks/results/test-ledger.jsonl`, is written to where it is named: `--ledger-file`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LEDGER_FILE = "test-ledger.jsonl"
FOLDER = "artifacts"
"""Git ignores it, and the commands write artifacts there."""


def ledger_path(start: Path | None = None) -> Path:
    """The ledger beside the artifacts of the repository that `start` (the working folder by default) lies in; outside
    of a repository, of `start` itself."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / ".git").exists():
            return folder / FOLDER / LEDGER_FILE
    return start / FOLDER / LEDGER_FILE


def config_hash(config: dict[str, Any]) -> str:
    """The SHA-256 of a configuration as data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()


def append_entry(
    *,
    config: dict[str, Any],
    seed: int,
    data: str,
    data_sha256: str,
    split: str,
    part: str,
    result: dict[str, Any],
    path: Path | None = None,
) -> dict[str, Any]:
    """Append one evaluation and return the entry; what another process appends at the same time is kept apart.

    Raises OSError where it cannot be written whole; nothing of it is left then.
    """
    path = path or ledger_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(path.parent),
        "config_sha256": config_hash(config),
        "config": config,
        "seed": seed,
        "data": data,
        "data_sha256": data_sha256,
        "split": split,
        "part": part,
        "result": result,
    }
    line = json.dumps(entry, default=str) + "\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        # Else the end of a line that another process is just writing would be taken for a torn one. A lock goes with
        # the process that holds it, killed or not.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _ends_torn(descriptor):  # a process was killed while it wrote: its half line stays, ours starts a new one
            line = "\n" + line
        _write_whole(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return entry


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """All whole entries, oldest first; a half line left by a killed process is passed over."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _write_whole(descriptor: int, line: bytes) -> None:
    """Append a line or nothing; raises OSError. A full disk takes a part of it without an error first."""
    before, written = os.fstat(descriptor).st_size, 0
    try:
        while written < len(line):
            written += os.write(descriptor, line[written:])
    except OSError:
        os.ftruncate(descriptor, before)  # nobody else has appended: the lock is ours
        raise


def _ends_torn(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"


def _commit(folder: Path) -> str:
    """The commit checked out, with "+" where files differ from it; "unknown" outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "--short=12", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    changed_code = [line for line in changed.splitlines() if not line.endswith(LEDGER_FILE)]
    return commit + ("+" if changed_code else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.rstrip("\n")
