"""Commands that go on from what they wrote are alone at their target; a kill leaves nothing in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from typer.testing import CliRunner

import index.cli
import training.cli
from index.command_line.one_writer import BeingWrittenError, one_writer
from testing.datasets import ring_dataset, write_dataset
from training.compare import export_teacher
from training.data.dataset import Dataset
from training.recipes import get_recipe
from training.run import RunOptions, run

QUIET = Console(quiet=True)
HOLD = """
import sys, time
from pathlib import Path
from index.command_line.one_writer import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_dataset(tmp_path_factory.mktemp("data"), users=20, items=20)


@pytest.fixture
def held() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts another process that holds a folder."""
    started: list[subprocess.Popen[str]] = []

    def hold(target: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(target)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_until_the_first_was_killed(
    held: Callable[[Path], subprocess.Popen[str]], tmp_path: Path
) -> None:
    target = tmp_path / "shop"
    first = held(target)
    for same in (target, tmp_path / "other" / ".." / "shop"):
        said = rf"^another process \({first.pid}\) writes .*shop; wait until"
        with pytest.raises(BeingWrittenError, match=said), one_writer(same):
            pass
    with one_writer(tmp_path / "another shop"):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with one_writer(target):
        assert os.listdir(tmp_path) == [".shop.lock"]
        with pytest.raises(BeingWrittenError, match=str(os.getpid())), one_writer(target):
            pass
    assert os.listdir(tmp_path) == []


def test_the_file_of_a_lock_that_was_removed_meanwhile_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking the file the one who held it may remove it, and a third may make another."""
    real, target, files = os.open, tmp_path / "shop", []

    def opened(path: Any, *rest: Any) -> int:
        found = real(path, *rest)
        files.append(os.fstat(found).st_ino)
        if len(files) == 1:
            os.unlink(path)
        return found

    monkeypatch.setattr(os, "open", opened)
    with one_writer(target):
        assert len(files) == 2 and os.stat(tmp_path / ".shop.lock").st_ino == files[1]


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    os.symlink(tmp_path / "letter.txt", tmp_path / ".shop.lock")
    with pytest.raises(OSError, match="symbolic links"), one_writer(tmp_path / "shop"):
        pass
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_a_link_to_a_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    os.symlink("shop", tmp_path / "alias")
    with one_writer(tmp_path / "shop"), pytest.raises(BeingWrittenError, match="alias"), one_writer(tmp_path / "alias"):
        pass
    with (
        one_writer(tmp_path / "alias"),
        pytest.raises(BeingWrittenError, match="shop"),
        one_writer(tmp_path / "shop"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS], ids=["no right", "read-only"])
def test_a_folder_with_nothing_writable_beside_it_is_its_own_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume that is mounted at the root of a container, and written by a user who is not root."""
    real, target = os.open, tmp_path / "volume"

    def opened(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_CREAT and Path(path).parent == tmp_path:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(OSError, match=r"volume\.lock"), one_writer(target):
        pass
    target.mkdir()
    for _ in range(2):
        with one_writer(target), pytest.raises(BeingWrittenError, match=r"^another process writes"), one_writer(target):
            pass
    assert os.listdir(tmp_path) == ["volume"] and not os.listdir(target)
    (tmp_path / ".volume.lock").write_text("another user's")
    with pytest.raises(OSError, match=r"volume\.lock"), one_writer(target):
        pass


def test_a_file_system_without_locks_is_written_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    with one_writer(tmp_path / "shop"):
        said = capsys.readouterr()
    assert not said.out and "no locks on the file system" in said.err and str(tmp_path / "shop") in said.err
    assert os.listdir(tmp_path) == []


def test_every_command_that_goes_on_is_alone_at_its_target(ring: Dataset, tmp_path: Path) -> None:
    """Training, choice, search, comparison, teacher, index: the second writer is refused in a sentence."""
    data, out = write_dataset(tmp_path / "data", users=20, items=20), tmp_path / "shop"
    run(get_recipe("markov"), ring, RunOptions(out=tmp_path / "done"), QUIET)
    (tmp_path / "vectors").mkdir()
    save_file({"vectors": np.eye(4, dtype=np.float32)}, tmp_path / "vectors" / "item_vectors.safetensors")
    words = {
        "train": ["train", "markov", "--data", data, "--out", out],
        "choose": ["choose", "--data", data, "--out", out],
        "tune": ["tune", "item_knn", "--data", data, "--out", out, "--trials", "1"],
        "compare": ["compare", "markov", "--data", data, "--out", out, "--no-ledger"],
        "rewrite": ["rewrite", tmp_path / "done", "--out", out],
        "index build": ["build", tmp_path / "vectors", "--out", out],
    }
    with one_writer(out):
        for command, given in words.items():
            app = index.cli.app if command == "index build" else training.cli.app
            result = CliRunner().invoke(app, [str(word) for word in given])
            assert result.exit_code == 2, (command, result.output)
            (line,) = [line for line in result.stderr.splitlines() if "error:" in line]
            assert (
                line
                == f"error: another process ({os.getpid()}) writes {out}; wait until it ends, or name another folder"
            )
        with pytest.raises(BeingWrittenError):
            export_teacher(tmp_path / "done", ring, out, top=3, newest=1, console=QUIET)
        assert not out.exists()
    run(get_recipe("markov"), ring, RunOptions(out=out), QUIET)
    assert sorted(os.listdir(tmp_path)) == ["data", "done", "shop", "vectors"], "no lock and no checkpoints are left"
