"""The test ledger: appended, never rewritten, whole again after a crash."""

from __future__ import annotations

import json
import subprocess
import sys

from training.evaluation.ledger import append_entry, config_hash, ledger_path, read_ledger

WRITER = """
import sys
from pathlib import Path
from training.evaluation.ledger import append_entry
for n in range(20):
    append_entry(config={"writer": sys.argv[2]}, seed=n, data="d", data_sha256="0" * 64,
    split="leave-one-out",
                 part="test", result={"text": "x" * 3000}, path=Path(sys.argv[1]))
"""


def enter(path, **changes):
    entry = {"config": {"a": 1}, "seed": 3, "data": "d", "data_sha256": "ab", "split": "leave-one-out", "part": "test"}
    return append_entry(**{**entry, "result": {"recall@10": 0.5}, **changes}, path=path)


def test_entries_are_appended_with_what_ran_on_what(tmp_path):
    path = tmp_path / "sub" / "ledger.jsonl"
    first = enter(path)
    enter(path, seed=4)
    assert [entry["seed"] for entry in read_ledger(path)] == [3, 4]
    assert read_ledger(path)[0] == first
    assert first["config_sha256"] == config_hash({"a": 1}) and first["result"] == {"recall@10": 0.5}
    assert {"date", "commit", "config", "data", "data_sha256", "split", "part"} <= set(first)


def test_the_hash_sees_values_and_not_the_order_of_keys():
    assert config_hash({"a": 1, "b": [2]}) == config_hash({"b": [2], "a": 1}) != config_hash({"a": 1, "b": [3]})


def test_a_torn_last_line_costs_neither_the_lines_before_nor_the_one_after(tmp_path):
    path = tmp_path / "ledger.jsonl"
    enter(path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    enter(path, seed=9)
    assert [entry["seed"] for entry in read_ledger(path)] == [3, 9]


def test_processes_appending_at_once_lose_nothing(tmp_path, repository):
    path = tmp_path / "ledger.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], cwd=repository) for name in ("a", "b")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    seen = [(entry["config"]["writer"], entry["seed"]) for entry in map(json.loads, path.read_text().splitlines())]
    assert sorted(seen) == [(name, n) for name in "ab" for n in range(20)]


def test_the_ledger_stands_beside_the_artifacts_at_the_root_of_the_repository(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "deep" / "down").mkdir(parents=True)
    assert ledger_path(tmp_path / "deep" / "down") == tmp_path / "artifacts" / "test-ledger.jsonl"


def test_measuring_leaves_a_clone_as_it_was(repository):
    asked = ["git", "-C", str(repository), "check-ignore", "--no-index", str(ledger_path(repository))]
    assert subprocess.run(asked, check=False, capture_output=True).returncode == 0


FULL = """
import resource, signal, sys
from pathlib import Path
from training.evaluation.ledger import append_entry
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
entry = dict(config={}, seed=1, data="d", data_sha256="ab", split="leave-one-out", part="test", path=path)
append_entry(**entry, result={"n": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, hard))
try:
    append_entry(**entry, result={"n": 2})
except OSError:
    print("refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
append_entry(**entry, result={"n": 3})
"""


def test_an_entry_for_which_there_is_no_room_is_an_error_and_leaves_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert [json.loads(line)["result"]["n"] for line in path.read_text().splitlines()] == [1, 3]
