"""Five hundred ways to damage an artifact: every one is refused with one sentence, none is served."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modeling.artifact.manifest import MANIFEST, file_sha256
from service.artifacts.loading import POOL, open_artifact
from service.errors import StartError
from testing.artifacts import write_id_artifact

DAMAGED = 500


def flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice((1, 1, 1, 4))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def drop(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randrange(1, 17)]


def insert(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.choice((rng.randbytes(rng.randrange(1, 17)), b"\n", b" ", b"0", b"\r"))


def zero(rng: random.Random, data: bytearray) -> None:
    place = rng.randrange(len(data))
    data[place : place + 64] = b"\0" * len(data[place : place + 64])


def move(rng: random.Random, data: bytearray) -> None:
    middle = rng.randrange(1, len(data))
    data[:] = data[middle:] + data[:middle]


BYTES: tuple[Callable[[random.Random, bytearray], None], ...] = (flip, flip, flip, cut, drop, insert, zero, move)


@contextmanager
def damaged(rng: random.Random, folder: Path) -> Iterator[str]:
    """Damage one file of `folder`, say how, and make it whole again."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # The manifest is what no other file vouches for: one time in three it is the one.
    path = folder / MANIFEST if rng.random() < 1 / 3 else rng.choice(files)
    whole = path.read_bytes()
    kind = rng.randrange(12)
    extra: Path | None = None
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        extra = path.with_name(path.name + ".bak")
        extra.write_bytes(whole)
    elif kind == 3:
        path.write_bytes(rng.choice(files).read_bytes() + b"\n" if path.name == MANIFEST else b"")
    else:
        data = bytearray(whole)
        change = rng.choice(BYTES)
        while bytes(data) == whole:
            change(rng, data)
        path.write_bytes(data)
    try:
        yield f"{path.relative_to(folder)}, kind {kind}"
    finally:
        if path.is_dir():
            path.rmdir()
        path.write_bytes(whole)
        if extra is not None:
            extra.unlink()


def test_every_damaged_artifact_is_refused_with_one_sentence(tmp_path: Path) -> None:
    folder = write_id_artifact(tmp_path, "small")
    before = {path: file_sha256(path) for path in folder.rglob("*") if path.is_file()}
    open_artifact(folder, "cpu")
    accepted = []
    for number in range(DAMAGED):
        with damaged(random.Random(number), folder) as how:
            try:
                open_artifact(folder, "cpu")
            except StartError as refused:
                assert "\n" not in str(refused) and len(str(refused)) < 700, (number, how, str(refused))
            else:
                accepted.append((number, how))
    assert accepted == []
    assert {path: file_sha256(path) for path in folder.rglob("*") if path.is_file()} == before
    open_artifact(folder, "cpu")


def test_files_of_two_artifacts_cannot_be_mixed(tmp_path: Path) -> None:
    one, other = write_id_artifact(tmp_path, "one"), tmp_path / "other"
    shutil.copytree(one, other)
    (other / MANIFEST).write_text((one / MANIFEST).read_text().replace('"one"', '"two"', 1))
    held = set(POOL._pieces)  # by other tests of this process
    with pytest.raises(StartError, match=r"manifest\.json of other .* altered"):
        open_artifact(other, "cpu")
    assert set(POOL._pieces) <= held
