"""The whole way as a user goes it: train, evaluate, serve, ask; the service answers what the evaluation said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testing.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["items.dim=32", "optimizer.epochs=3", "optimizer.positions=200"]


def _run(*arguments: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


OF_GENRE = ["history.title_tokens=6", "optimizer.epochs=3", "optimizer.positions=200", "method.beams=10"]

OF_TIGER = [
    *("method.codes.size=8", "method.codes.levels=2", "method.codes.dim=8", "method.codes.epochs=20"),
    *("backbone.width=32", "optimizer.epochs=3", "optimizer.positions=200", "method.beams=10"),
]

WITH_ENCODER = [*OF_TIGER, "backbone.kind=encoder-decoder", "backbone.depth=1"]

OF_P5 = [
    *("method.codes.size=8", "method.codes.clusters=3", "backbone.width=32", "optimizer.epochs=3"),
    *("optimizer.positions=200", "method.beams=10"),
]


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("sasrec", [*SMALL, "backbone.width=32"]),
        ("anyo", SMALL),
        ("contriever", [*SMALL, "backbone.layers=1", "history.limit=3"]),
        ("genre", OF_GENRE),
        ("tiger", OF_TIGER),
        ("tiger", WITH_ENCODER),
        ("p5", OF_P5),
    ],
)
def test_train_evaluate_serve(recipe: str, settings: list[str], tmp_path: Path) -> None:
    data, artifact, top = write_dataset(tmp_path / "ring", users=80), tmp_path / "model", tmp_path / "top.jsonl"
    backbone = ["--backbone", "minilm"] if recipe in ("anyo", "contriever") else []
    chosen = [part for setting in settings for part in ("--set", setting)]
    _run(
        *("-m", "training", "train", recipe, "--data", str(data), "--out", str(artifact), *backbone, *chosen),
        folder=tmp_path,
    )
    printed = _run(
        *("-m", "training", "evaluate", str(artifact), "--data", str(data), "--top", str(top), "--json"),
        folder=tmp_path,
    )
    row = json.loads(printed.splitlines()[-1])
    assert row["questions"] == 80
    assert row["served_index"]["ndcg@10"] == pytest.approx(row["ndcg@10"]["value"], abs=1e-6)
    assert ("tasks" in row) == (recipe == "p5")  # figures of every task family
    ledger = [json.loads(line) for line in (tmp_path / "artifacts" / "test-ledger.jsonl").read_text().splitlines()]
    assert len(ledger) == 1
    assert ledger[0]["result"]["ndcg@10"] == row["ndcg@10"]
    served = _run(
        str(ROOT / "benchmarks" / "quality" / "parity.py"), str(artifact), str(top), "--users", "80", folder=tmp_path
    )
    assert json.loads(served.splitlines()[-1])["different"] == 0
