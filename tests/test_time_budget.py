"""``--time-budget`` of the commands that give a whole answer or none."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import index.cli
import training.cli
import training.cli_data
import training.commands.compare
import training.rewrite

SAYS = "error: the time budget of 0.0005 min ended before the command did: give more with --time-budget"
WIDE = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}


def forever(*given: Any, **named: Any) -> None:
    time.sleep(20)


@pytest.mark.parametrize(
    ("line", "home", "step"),
    [
        ("compare sasrec --data d --out o", training.commands.compare, "open_dataset"),
        ("evaluate a --data d", training.cli, "open_dataset"),
        ("reweigh a --data d --out o", training.cli, "open_dataset"),
        ("rewrite a --out o", training.rewrite, "rewrite"),
        ("floors --data d", training.cli_data, "open_dataset"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else None,
)
def test_the_budget_covers_the_command(
    line: str, home: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(home, step, forever)
    result = CliRunner().invoke(training.cli.app, [*line.split(), "--time-budget", "0.0005"], env=WIDE)
    assert (result.exit_code, result.stderr.strip()) == (2, SAYS)
    assert result.stdout == "" and list(tmp_path.iterdir()) == []


def test_it_ends_a_library_that_is_at_work_and_leaves_no_file(tmp_path: Path) -> None:
    """A graph that takes minutes on one thread: no line of Python runs while it is built."""
    vectors_ND = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    save_file({"vectors": vectors_ND}, tmp_path / index.cli.VECTORS_FILE)
    line = ["build", str(tmp_path), "--kind", "hnsw", "--set", "build_effort=4096", "--set", "links=256"]
    result = CliRunner().invoke(index.cli.app, [*line, "--time-budget", "0.005"], env=WIDE)
    assert (result.exit_code, result.stderr.strip()) == (2, SAYS.replace("0.0005", "0.005"))
    assert [path.name for path in tmp_path.iterdir()] == [index.cli.VECTORS_FILE]


def test_tune_too(tmp_path: Path) -> None:
    save_file({"vectors": np.eye(64, dtype=np.float32)}, tmp_path / index.cli.VECTORS_FILE)
    assert CliRunner().invoke(index.cli.app, ["build", str(tmp_path), "--time-budget", "1"]).exit_code == 0
    line = ["tune", str(tmp_path), "--repeats", "1000000", "--time-budget", "0.0005"]
    result = CliRunner().invoke(index.cli.app, line, env=WIDE)
    assert (result.exit_code, result.stderr.strip()) == (2, SAYS)
