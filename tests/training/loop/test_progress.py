"""What training says: lines for people, never the library's dictionaries, and nothing on standard output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def shop(folder: Path) -> Path:
    folder.mkdir()
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Title {n}\n" for n in range(30)))
    rows = [f"u{u},i{(u * 7 + step) % 30},{1_700_000_000 + step}" for u in range(40) for step in range(6)]
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    return folder


def test_train_speaks_in_lines_and_standard_output_is_one_object(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training", "train", "sasrec", "--data", str(shop(tmp_path / "shop")), "--out",
         str(tmp_path / "artifact"), "--set", "optimizer.epochs=2", "--json"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["artifact"] == str(tmp_path / "artifact")
    assert "{'" not in done.stderr
    said = re.sub(r"\s+", " ", done.stderr)
    for epoch in (1, 2):
        pattern = rf"sasrec: epoch {epoch} of at most 2, step \d+ of \d+, loss [\d.]+, at most \d+ (s|min) left; "
        assert re.search(pattern + r"validation ndcg@10 [\d.]+, best [\d.]+ \(epoch \d\)", said), done.stderr
