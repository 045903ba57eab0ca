"""What Linux alone has is asked for in one place each, and has a twin elsewhere."""

from __future__ import annotations

import ctypes
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from modeling import cores
from modeling.artifact import atomic
from service.artifacts import memory as sharing
from service.artifacts import trial
from service.engine import cpu as service_cores

ROOT = Path(__file__).resolve().parent.parent.parent
# Where each name that only Linux (or only glibc) has may stand: there it has a twin.
ALLOWED = {
    "sched_getaffinity": {"modeling/cores.py"},
    "renameat2": {"modeling/artifact/atomic.py"},
    "malloc_trim": {"service/artifacts/memory.py"},
    "mallopt": {"service/engine/cpu.py"},
    "/proc/": {
        "benchmarks/engine/mapped_artifact.py",
        "benchmarks/engine/memory.py",
        "benchmarks/lib/results.py",
        "service/artifacts/trial.py",
        "service/doctor.py",
        "training/comparison/footprint.py",
        "training/comparison/report.py",
    },
    "sched_setaffinity": set(),
    "posix_fadvise": set(),
    "prctl": set(),
    "memfd_create": set(),
}


def test_cores_are_counted_without_an_affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    assert cores.affinity_cores() == cores.available_cores(tmp_path) == service_cores.available_cores(tmp_path) == 6
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores.available_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("text", "threads"), [("3", 3), ("2,1", 2), (" 4 ", 4), ("", None), ("0", None), ("many", None), ("-1", None)]
)
def test_threads_asked_for(text: str, threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert cores.asked_threads() == threads


class Library:
    """A C library without anything of Linux."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_a_library_without_the_calls_of_linux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Library)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert service_cores.few_heaps() is False
    sharing.give_memory_back()
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    atomic._exchange(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["new"]
    assert os.listdir(tmp_path) == ["old"]


def test_a_load_is_tried_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits: dict[int, int] = {}
    monkeypatch.setattr(trial.resource, "setrlimit", lambda what, pair: limits.update({what: pair[0]}))
    with warnings.catch_warnings():
        trial._limit(1 << 30, 0, 2)
    assert {trial.resource.RLIMIT_AS, trial.resource.RLIMIT_CPU} <= limits.keys()
    limits.clear()
    monkeypatch.setattr(trial, "STATM", tmp_path / "statm")
    monkeypatch.setattr(trial, "MEMINFO", tmp_path / "meminfo")
    with warnings.catch_warnings():
        trial._limit(1 << 30, 0, 2)
    assert trial.resource.RLIMIT_AS not in limits and trial.resource.RLIMIT_CPU in limits
    assert trial.available_memory() > 0


@pytest.mark.parametrize("name", ALLOWED)
def test_no_other_file_asks_linux_itself(name: str) -> None:
    folders = ("anyo.py", "index", "modeling", "service", "training", "benchmarks", "scripts")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if name in path.read_text()}
    assert found <= ALLOWED[name]
