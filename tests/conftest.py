"""What every test shares: skips fail in CI, tests that need other hardware are left out and counted, where real data
lies.

`TEST_DATA` names a folder with real data sets (`amazon-beauty/`, `movielens-small/`, …); without it, the
folder `shared/data` beside the checkout is used where there is one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

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


def _gpu() -> bool:
    return shutil.which("nvidia-smi") is not None


def _linux() -> bool:
    return sys.platform.startswith("linux")


def _bf16() -> bool:
    """Asked of torch and not of our own probe: a probe that breaks must fail tests, not leave them out."""
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _int8() -> bool:
    """Instructions before VNNI add pairs of products in 16 bits, which overflow."""
    import torch

    large = torch.full((16, 512), 127, dtype=torch.int8)
    return bool((torch._int_mm(large, large.T[:, :8].contiguous()) == 512 * 127 * 127).all())


def _amx() -> bool:
    import torch

    hidden = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return bool(torch.cpu._is_amx_tile_supported()) and ("AMX" in hidden or hidden in ("", "ALL", "DEFAULT"))


HARDWARE: dict[str, tuple[str, Callable[[], bool]]] = {
    "gpu": ("an NVIDIA GPU", _gpu),
    "linux": ("Linux", _linux),
    "bf16": ("a processor with products in bf16 (AVX-512 or AMX)", _bf16),
    "int8": ("a processor with exact products of eight-bit integers (VNNI or AMX)", _int8),
    "amx": ("a processor with AMX", _amx),
}
"""Marker: what a test with it needs, and whether it is here. Probes run only where a test asks."""
LEFT_OUT = pytest.StashKey[dict[str, int]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests out whose hardware is not here (deselected, and counted in the summary)."""
    kept, counts = items, config.stash.setdefault(LEFT_OUT, {})
    for marker, (_, here) in HARDWARE.items():
        needing = [item for item in kept if item.get_closest_marker(marker)]
        if needing and not here():
            counts[marker] = len(needing)
            config.hook.pytest_deselected(items=needing)
            kept = [item for item in kept if item not in needing]
    items[:] = kept


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With several workers (pytest-xdist), hand the counts to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Take the counts of a worker; every worker collects all tests, so they are the same."""
    node.config.stash.setdefault(LEFT_OUT, {}).update(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for every kind of hardware that tests were left out for."""
    for marker, count in config.stash.get(LEFT_OUT, {}).items():
        terminalreporter.write_line(
            f"left out: {count} {'test needs' if count == 1 else 'tests need'} {HARDWARE[marker][0]}"
        )


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
