"""tests/conftest.py: in CI a skipped test fails the run; what needs other hardware is left out, and counted."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import HARDWARE

CONFTEST = Path(__file__).resolve().parent / "conftest.py"
SKIPS = {
    "inside": "import pytest\ndef test_a():\n    pytest.skip('no server')\n",
    "marked": "import pytest\n@pytest.mark.skip(reason='no server')\ndef test_a():\n    pass\n",
    "module": "import pytest\npytest.skip('no server', allow_module_level=True)\n",
}


def run_skipping_tests(folder: Path, ci: str) -> subprocess.CompletedProcess[str]:
    """Run, under the real conftest, one test file for each way of skipping."""
    shutil.copy(CONFTEST, folder)
    for name, source in SKIPS.items():
        (folder / f"test_{name}.py").write_text(source)
    options = ["-q", "-rA", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    command = [sys.executable, "-m", "pytest", *options, str(folder)]
    environment = {**os.environ, "CI": ci}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_every_kind_of_skip_is_a_failure_in_ci(tmp_path: Path) -> None:
    finished = run_skipping_tests(tmp_path, ci="true")
    assert finished.returncode == 1
    assert "1 failed, 2 errors" in finished.stdout
    assert finished.stdout.count("must run every test") >= len(SKIPS)
    assert "no server" in finished.stdout


def test_a_skip_is_only_a_skip_on_a_laptop(tmp_path: Path) -> None:
    finished = run_skipping_tests(tmp_path, ci="")
    assert "3 skipped" in finished.stdout
    assert "failed" not in finished.stdout


NEEDS = """
import pytest
@pytest.mark.{marker}
def test_a():
    raise AssertionError("it ran")
@pytest.mark.{marker}
def test_b():
    raise AssertionError("it ran")
def test_c():
    pass
"""


@pytest.mark.parametrize("marker", list(HARDWARE))
@pytest.mark.parametrize("here", [True, False])
def test_what_needs_other_hardware_is_left_out_and_counted_and_no_skip(marker: str, here: bool, tmp_path: Path) -> None:
    shutil.copy(CONFTEST, tmp_path)
    probe = f"HARDWARE[{marker!r}] = (HARDWARE[{marker!r}][0], lambda: {here})\n"
    with (tmp_path / "conftest.py").open("a") as file:
        file.write(probe)
    (tmp_path / "test_needs.py").write_text(NEEDS.format(marker=marker))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    finished = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "CI": "true"}, capture_output=True, text=True, check=False
    )
    line = f"left out: 2 tests need {HARDWARE[marker][0]}"
    assert (line in finished.stdout) != here
    assert ("2 failed, 1 passed" if here else "1 passed, 2 deselected") in finished.stdout
    assert "skipped" not in finished.stdout
