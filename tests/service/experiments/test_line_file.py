"""The feedback log holds whole lines and counts what is there, whatever happens to its file or its disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.experiments.line_file import LineFile, WholeLines
from service.observability.metrics import Metrics

LINES = [json.dumps({"number": number, "text": "x" * 40}).encode() + b"\n" for number in range(10)]


def records(path: Path) -> list[int]:
    """Return the numbers of the records in a file; each line has to be one."""
    return [json.loads(line)["number"] for line in path.read_bytes().splitlines()]


def opened(path: Path) -> WholeLines:
    lines = WholeLines(path)
    lines.open()
    return lines


def renamed(path: Path) -> Path:
    return path.rename(path.with_suffix(".1"))


def deleted(path: Path) -> Path:
    kept = path.with_suffix(".1")
    os.link(path, kept)
    path.unlink()
    return kept


def copied_and_cut(path: Path) -> Path:
    kept = Path(shutil.copy(path, path.with_suffix(".1")))
    os.truncate(path, 0)
    return kept


@pytest.mark.parametrize("rotate", [renamed, deleted, copied_and_cut])
def test_after_a_rotation_lines_go_into_the_new_file(tmp_path: Path, rotate: Callable[[Path], Path]) -> None:
    path = tmp_path / "log.jsonl"
    lines = opened(path)
    assert lines.append(LINES[:3]) == 3
    old = rotate(path)
    assert lines.append(LINES[3:5]) == 2
    assert (records(old), records(path)) == ([0, 1, 2], [3, 4])
    lines.close()


def test_a_folder_that_is_gone_for_a_while_costs_the_lines_of_that_while(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log.jsonl"
    path.parent.mkdir()
    lines = opened(path)
    path.parent.rename(tmp_path / "moved")
    assert lines.append(LINES[:2]) == 0
    path.parent.mkdir()
    assert lines.append(LINES[2:4]) == 2
    assert records(path) == [2, 3]
    lines.close()


def test_a_last_line_that_was_cut_stays_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 7, "te')
    lines = opened(path)
    assert lines.append(LINES[:2]) == 2 and lines.append(LINES[2:3]) == 1
    assert path.read_bytes() == b'{"number": 7, "te\n' + b"".join(LINES[:3])
    lines.close()


# A process of its own, because the limit holds for all of it: writes with room for so many bytes more, then with more.
FULL = """
import json, resource, signal, sys
from pathlib import Path
from service.experiments.line_file import WholeLines
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, room = Path(sys.argv[1]), int(sys.argv[2])
lines = [json.dumps({"number": n, "text": "x" * 40}).encode() + b"\\n" for n in range(10)]
file = WholeLines(path)
file.open()
counts = [file.append(lines[:2])]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
counts += [file.append(lines[2:6]), file.append(lines[6:7])]
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
counts.append(file.append(lines[7:]))
print(json.dumps(counts))
"""
WIDTH = len(LINES[0])


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn before"])
@pytest.mark.parametrize("room", [0, 1, 2, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH + 5, 4 * WIDTH, 4 * WIDTH + 1])
def test_a_full_disk_leaves_whole_lines_and_counts_them(tmp_path: Path, room: int, torn: bool) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"number": 1' if torn else b"")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(room)], capture_output=True, text=True, check=True
    )
    counts = json.loads(done.stdout.splitlines()[-1])
    found = path.read_bytes()
    if torn:
        assert found.startswith(b'{"number": 1\n')
        path.write_bytes(found.partition(b"\n")[2])
    kept = records(path)
    assert counts[0] == 2 and counts[3] == 3 and len(kept) == sum(counts)
    assert kept == [0, 1, *range(2, 2 + counts[1]), *([6] if counts[2] else []), 7, 8, 9]
    assert counts[1] == min(4, room // WIDTH)


def test_a_short_write_behind_a_cut_line_is_taken_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"cut")
    lines = opened(path)
    real = os.write
    monkeypatch.setattr(
        "service.experiments.line_file._write", lambda descriptor, content: real(descriptor, content[:9])
    )
    assert lines.append(LINES[:2]) == 0 and path.read_bytes() == b"cut"
    monkeypatch.undo()
    assert lines.append(LINES[:2]) == 2 and path.read_bytes() == b"cut\n" + b"".join(LINES[:2])
    lines.close()


def test_where_others_append_too_nothing_of_theirs_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    lines, other = opened(path), opened(path)
    real = os.write

    def short(descriptor: int, content: bytes) -> int:
        written = real(descriptor, content[: WIDTH + 4])
        monkeypatch.undo()
        other.append(LINES[8:9])
        return written

    monkeypatch.setattr("service.experiments.line_file._write", short)
    assert lines.append(LINES[:2]) == 1
    assert lines.append(LINES[2:3]) == 1
    assert path.read_bytes().endswith(LINES[8] + b"\n" + LINES[2]), "what was cut is ended, theirs is kept"
    lines.close()
    other.close()


def test_the_counter_says_what_is_in_the_file(tmp_path: Path) -> None:
    path, metrics = tmp_path / "log.jsonl", Metrics()
    file = LineFile(path, metrics)
    file.open()
    for number in range(200):
        file.write({"number": number})
    file.close()
    written = metrics.registry.get_sample_value("anyo_feedback_log_lines_total", {"result": "written"})
    assert records(path) == list(range(200)) and written == 200
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
