"""scripts/audit.py: a vulnerability fails it, and an audit that did not take place is never taken for a good one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "audit.py"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_vulnerabilities_are_named_with_the_version_that_mends_them(audit: ModuleType) -> None:
    flaw = {"id": "GHSA-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
    checked, found = audit.judge([
        {"name": "a", "version": "2.0", "vulns": [flaw]}, {"name": "b", "version": "1.0", "vulns": []},
    ])  # fmt: skip
    assert checked and found == ["a 2.0: GHSA-1 (fixed in 2.1)"]


def test_packages_that_were_all_skipped_are_no_audit(audit: ModuleType) -> None:
    assert audit.judge([{"name": "a", "skip_reason": "not found"}]) == (False, [])


def test_an_audit_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("this is not a requirement ==\n")
    command = [sys.executable, str(SCRIPT), "--pins", str(pins)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and "NOT DONE" in done.stdout
    assert subprocess.run([*command, "--strict"], capture_output=True, check=False, timeout=60).returncode == 1
