"""What every test shares: skips fail in CI, GPU tests are left out without a GPU, where real data lies.

`TEST_DATA` names a folder with real data sets (`amazon-beauty/`, `movielens-small/`, …); without it, the
folder `shared/data` beside the checkout is used where there is one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
SKIP_IN_CI = "skipped, but CI must run every test; install or provide what it needs: "


def _skip_becomes_failure(report: pytest.TestReport | pytest.CollectReport) -> None:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = SKIP_IN_CI + reason


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one in CI: a test that never runs there proves nothing."""
    report = yield
    _skip_becomes_failure(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    _skip_becomes_failure(report)
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests marked `gpu` out where there is no NVIDIA GPU (deselected, and counted as such)."""
    if shutil.which("nvidia-smi"):
        return
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu:
        config.hook.pytest_deselected(items=needs_gpu)
        items[:] = [item for item in items if item not in needs_gpu]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from a real data set's name to its folder; skips the test where it is not there."""
    folder = Path(os.environ.get("TEST_DATA") or ROOT.parent / "shared" / "data")

    def find(name: str) -> Path:
        if not (folder / name).is_dir():
            pytest.skip(f"no data set {name} under {folder}; TEST_DATA names the folder that holds it")
        return folder / name

    return find
