"""`modeling.artifact.atomic`: a writer that is killed with -9 leaves the old artifact or the new one, and both load."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from modeling.artifact.atomic import replaced_folder
from modeling.encoder.build import Model
from modeling.methods.dense import load_artifact
from tests.modeling.artifact.test_artifact import write

ROOT = Path(__file__).resolve().parents[3]
KILLS = 20
# Replaces TARGET by copies of two artifacts in turn, a file at a time, as fast as it can; says when it has begun.
WRITER = """
import shutil, sys
from pathlib import Path
from modeling.artifact.atomic import replaced_folder
target, *sources = map(Path, sys.argv[1:])
print("begun", flush=True)
for turn in range(100_000):
    with replaced_folder(target) as work:
        shutil.copytree(sources[turn % 2], work, dirs_exist_ok=True)
    print("written", flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_artifact(
    small_model: Callable[..., Model], tmp_path: Path
) -> None:
    sources = [write(small_model("ids", seed=seed), tmp_path / "from", f"seed-{seed}") for seed in (0, 5)]
    versions = {load_artifact(source).manifest.version for source in sources}
    target = tmp_path / "served" / "artifact"
    moments = random.Random(7)
    left, turn = set(), 0.02
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(target), *map(str, sources)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
            begun = time.monotonic()
            for turns in range(1, 1 + moments.randrange(3)):
                writer.stdout.readline()
                turn = (time.monotonic() - begun) / turns
            try:
                writer.wait(moments.uniform(0.0, turn))  # in the midst of the next turn, however fast turns are now
            except subprocess.TimeoutExpired:
                writer.kill()
            assert writer.wait() == -9
        if target.exists():  # a first write that never ended leaves nothing under this name
            left.add(load_artifact(target).manifest.version)
    assert left == versions
    with replaced_folder(target) as work:
        (work / "whole").write_text("the next writer")
    assert [path.name for path in target.parent.iterdir()] == ["artifact"], "work folders of the dead are left"
