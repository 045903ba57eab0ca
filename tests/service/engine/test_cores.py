"""Threads follow from the cores that are really available."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.engine import cpu as cores


def cgroup_v2(folder: Path, content: str) -> Path:
    (folder / "cpu.max").write_text(content)
    return folder


def test_no_quota_means_the_affinity(tmp_path: Path) -> None:
    everything = cores.available_cores(tmp_path)
    assert everything >= 1
    assert cores.available_cores(cgroup_v2(tmp_path, "max 100000\n")) == everything


@pytest.mark.parametrize(("content", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("100000 100000", 1)])
def test_a_quota_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(40)), raising=False)
    assert cores.available_cores(cgroup_v2(tmp_path, content)) == expected


def test_the_older_cgroups_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(40)), raising=False)
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, expected in (("300000\n", 3), ("-1\n", 40)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
        assert cores.available_cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("asked", "available", "expected"),
    [
        ((0, 0), 1, (1, 1, 1)),
        ((0, 0), 2, (2, 1, 2)),
        ((0, 0), 16, (4, 4, 16)),
        ((1, 0), 8, (1, 8, 8)),
        ((0, 3), 8, (4, 3, 3)),
        ((2, 1), 8, (2, 1, 1)),
    ],
)
def test_lanes_share_the_cores_and_a_lone_pass_has_them_all(
    asked: tuple[int, int], available: int, expected: tuple[int, int, int]
) -> None:
    assert cores.shares(*asked, cores=available) == cores.Shares(*expected)
    assert cores.shares(0, 0, "cuda", available) == cores.Shares(1, 1, 1)


def test_the_setting_reaches_the_thread_that_runs_the_model() -> None:
    import torch

    before = torch.get_num_threads()
    seen: list[int] = []
    try:
        cores.set_model_threads(3)
        thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


HEAPS = """
import ctypes, re, threading
from service.engine.cpu import few_heaps
print(few_heaps())
meet = threading.Barrier(9)
def work():
    block = ctypes.CDLL(None).malloc(1000)
    meet.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for each in threads: each.start()
meet.wait()
for each in threads: each.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


@pytest.mark.linux  # glibc's own
@pytest.mark.parametrize(("asked", "most"), [(None, cores.ARENAS), ("6", 6)])
def test_threads_share_heaps_unless_the_environment_says_otherwise(asked: str | None, most: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    if asked is not None:
        environment["MALLOC_ARENA_MAX"] = asked
    done = subprocess.run(
        [sys.executable, "-u", "-c", HEAPS], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(asked is None))
    heaps = done.stdout.count("<heap nr=")
    assert 1 <= heaps <= most
    if asked is not None:
        assert heaps > cores.ARENAS  # eight threads take as many as they are given


PRODUCTS = """
import ctypes, threading
from service.engine.cpu import set_library_defaults
set_library_defaults()
import torch
libc = ctypes.CDLL("libc.so.6")
class Heaps(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")]
libc.mallinfo2.restype = Heaps
def work():
    torch.set_num_threads(1)
    for rows in (100, 200, 400, 800):
        torch.nn.functional.linear(torch.ones(rows, 512), torch.ones(1536, 512))
    done.wait()
    end.wait()
before = libc.mallinfo2()
done, end = threading.Barrier(5), threading.Event()
threads = [threading.Thread(target=work) for _ in range(4)]
for each in threads: each.start()
done.wait()
after = libc.mallinfo2()
end.set()
print(after.uordblks + after.hblkhd - before.uordblks - before.hblkhd)
"""


@pytest.mark.linux  # glibc's own
def test_threads_that_multiply_keep_no_memory_of_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MKL_DISABLE_FAST_MM"}
    done = subprocess.run([sys.executable, "-c", PRODUCTS], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2**22
