"""scripts/audit.py: a vulnerability fails it, and an audit that did not take place is never taken for a good one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import audit
from scripts.setup import LOCK, locked_blocks

SCRIPT = Path(audit.__file__)
FLAW = {"id": "GHSA-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
GOOD: dict[str, Any] = {"name": "b", "version": "1.0", "vulns": []}
BAD: dict[str, Any] = {"name": "a", "version": "2.0", "vulns": [FLAW]}
UNKNOWN: dict[str, Any] = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        ([GOOD], 0, "1 pinned packages, 0 known vulnerabilities, 0 not compared"),
        ([GOOD, BAD], 1, "a 2.0: GHSA-1 (fixed in 2.1)"),
        ([GOOD, UNKNOWN], 1, "not compared: c: not found"),
        ([UNKNOWN], 3, "NOT DONE, nothing was compared"),
        ([], 3, "NOT DONE, nothing was compared"),
        ("no route to host", 3, "NOT DONE, nothing was compared: the advisories cannot be asked from here (no route"),
    ],
)
def test_the_exit_code_says_whether_all_was_compared(
    answer: Any, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.report(answer) == code
    assert says in capsys.readouterr().out


def test_every_pinned_package_is_asked_for_once() -> None:
    asked = audit.pins(audit.PINS)
    names = [line.partition("==")[0].lower().replace("_", "-").replace(".", "-") for line in asked]
    assert len(names) == len(set(names)) and "torch" in names
    assert {name.lower() for name in locked_blocks(LOCK.read_text())} <= set(names)
    assert not any(set(line) & set(" \\;#") for line in asked)


def test_an_audit_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("this is not a requirement ==\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--pins", str(pins)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 3 and "NOT DONE" in done.stdout


@pytest.mark.parametrize(("code", "last", "noted"), [(0, 0, False), (1, 1, False), (3, 0, True), (2, 1, False)])
def test_ci_tells_an_audit_that_was_not_done_from_one_that_is_in_order(
    code: int, last: int, noted: bool, tmp_path: Path
) -> None:
    """The real .ci/run, with programs that only say how they ended."""
    run = tmp_path / ".ci" / "run"
    run.parent.mkdir()
    shutil.copy(SCRIPT.parent.parent / ".ci" / "run", run)
    needed = re.findall(r"([a-z-]+):[a-z-]+", run.read_text().split("needed=(")[1].split(")")[0])
    for name in ("make", *needed):
        (tmp_path / name).write_text("#!/bin/sh\necho 'left out: 2 tests need an NVIDIA GPU'\n")
        (tmp_path / name).chmod(0o755)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {code}\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(run)], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == last, done.stderr
    assert ("[ci] the audit of dependencies was NOT DONE" in done.stdout) == noted
    assert ("[ci] failed: audit" in done.stdout) == bool(last)
    assert "left out: 2 tests need an NVIDIA GPU" in done.stdout.splitlines()[-4:]
