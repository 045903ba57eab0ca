"""A small run of `make fuzz`: generated requests and mutated bytes against a real process find nothing."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from benchmarks.faults.fuzz import SEEDS, mistake, mutate
from testing.running import ROOT


@pytest.mark.slow
def test_generated_requests_and_mutated_bodies_find_nothing() -> None:
    command = [sys.executable, "-m", "benchmarks.faults.fuzz", "--cases", "2000", "--bodies", "5000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["cases"] >= 2000 and result["bodies"] == 5000 and result["found"] == 0
    assert {"200", "400", "422"} <= set(result["statuses"]), "some pass, some are not JSON, some have a wrong field"


def test_the_judge_sees_what_it_looks_for() -> None:
    known = {200, 404, 500, 503}
    shape = b'{"error":{"code":"c","message":"m","request_id":"r"}}'
    assert mistake("POST", "/feedback", 404, shape, known) is None
    assert mistake("POST", "/feedback", 503, shape, known) is None
    assert "status 500" in (mistake("POST", "/feedback", 500, shape, known) or "")
    assert "undocumented" in (mistake("POST", "/feedback", 418, shape, known) or "")
    assert "schema" in (mistake("POST", "/feedback", 404, b'{"detail":"Not Found"}', known) or "")
    assert "schema" in (mistake("POST", "/feedback", 200, shape, known) or "")


def test_mutations_change_bytes_and_follow_from_the_seed() -> None:
    valid = SEEDS[0][2]
    first = [mutate(random.Random(number), valid) for number in range(200)]
    assert first == [mutate(random.Random(number), valid) for number in range(200)]
    assert sum(body != valid for body in first) > 190 and len(set(first)) > 150
