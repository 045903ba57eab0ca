"""Threads follow from the cores that are really available."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from service import cores


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


def test_one_core_is_left_to_the_rest() -> None:
    assert [cores.model_threads(0, available) for available in (1, 2, 8)] == [1, 1, 7]
    assert cores.model_threads(5, 2) == 5


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
