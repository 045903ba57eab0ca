"""Inverted files: built in shards within a memory limit, resumed after a kill, tuned to a target."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from index import FlatIndex, IndexFolderError, SearchError, build_index, open_index, save_index, spec_of
from index.base import UNFINISHED
from index.build import recall_of
from index.building.in_parts import build_streamed
from index.building.tuning import Point, cheapest
from index.cli import app
from index.ivf.cells import IvfIndex
from index.ivf.on_disk import DiskVectors

SIZE, DIM = 3000, 64
SHARDS = 3  # with a limit of 1 MiB


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, DIM))
    found = centres[rng.integers(0, 40, SIZE)] + 0.5 * rng.standard_normal((SIZE, DIM))
    return found.astype(np.float32)


@pytest.fixture
def artifact(vectors, tmp_path):
    save_file({"item_vectors": vectors}, tmp_path / "item_vectors.safetensors")
    save_file({"users": vectors[:50] + 0.1}, tmp_path / "users.safetensors")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("kind", ["ivf-fastscan", "ivf-pq", "ivf-sq"])
def test_a_build_that_was_killed_goes_on_and_gives_the_same_bytes(kind, artifact, vectors, monkeypatch):
    whole, broken = artifact / "whole", artifact / "broken"
    source = artifact / "item_vectors.safetensors"
    lines: list[str] = []
    entry = build_streamed(spec_of(kind), source, whole, 1, say=lines.append)
    assert entry.recall_at_10 > 0.9 and sum("shard" in line for line in lines) == SHARDS
    assert not (whole / UNFINISHED).exists()
    encode, encoded = IvfIndex.encoded.__func__, []

    def killed(cls, coded, centres, block):
        if len(encoded) == 1:
            raise KeyboardInterrupt
        encoded.append(len(block))
        return encode(cls, coded, centres, block)

    monkeypatch.setattr(IvfIndex, "encoded", classmethod(killed))
    with pytest.raises(KeyboardInterrupt):
        build_streamed(spec_of(kind), source, broken, 1)
    torn = broken / UNFINISHED / "shard-000000000000-codes.npy"
    (broken / UNFINISHED / "shard-000000001024-codes.npy").write_bytes(torn.read_bytes()[:200])  # cut by the kill
    monkeypatch.setattr(
        IvfIndex, "encoded", classmethod(lambda *given: encoded.append(len(given[3])) or encode(*given))
    )
    monkeypatch.setattr(IvfIndex, "trained", None)  # what was trained is kept
    assert build_streamed(spec_of(kind), source, broken, 1) == entry
    assert sum(encoded) == SIZE, "no shard was encoded twice"
    assert (broken / "index.faiss").read_bytes() == (whole / "index.faiss").read_bytes()
    index = open_index(whole)
    assert np.array_equal(index.vectors(), vectors)
    assert recall_of(index, vectors[:50] + 0.1, FlatIndex.build(vectors)) > 0.9


def test_a_build_of_other_vectors_begins_anew(artifact, vectors):
    source, folder = artifact / "item_vectors.safetensors", artifact / "index"
    (folder / UNFINISHED).mkdir(parents=True)
    (folder / UNFINISHED / "plan.json").write_text('{"size": 1}')
    lines: list[str] = []
    build_streamed(spec_of("ivf-sq"), source, folder, 1, say=lines.append)
    assert "begins anew" in lines[0]


def test_vectors_on_disk_are_searched_as_those_in_memory(artifact, vectors):
    disk, memory = DiskVectors(artifact / "item_vectors.safetensors", 700), FlatIndex.build(vectors)
    allowed = np.arange(5, SIZE, 7)
    for given in ({}, {"allowed": allowed}, {"exclude": [np.arange(900)] * 3}):
        scores, rows = disk.search(vectors[:3], 12, **given)
        expected_scores, expected_rows = memory.search(vectors[:3], 12, **given)
        assert np.array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_what_cannot_be_built_in_parts_is_refused(artifact, vectors):
    source = artifact / "item_vectors.safetensors"
    with pytest.raises(SearchError, match="kind 'hnsw' is not built in parts"):
        build_streamed(spec_of("hnsw"), source, artifact / "a", 64)
    with pytest.raises(SearchError, match="the memory limit is 1 MiB, and 2000 cells of 64 numbers need 2 MiB"):
        build_streamed(spec_of("ivf-sq", {"cells": 2000}), source, artifact / "a", 1)
    with pytest.raises(SearchError, match="subvectors is 7, and a vector has 64 numbers"):
        build_index(spec_of("ivf-pq", {"subvectors": 7}), vectors)
    vectors = vectors.copy()
    vectors[2500, 3] = np.nan
    save_file({"item_vectors": vectors}, source)
    with pytest.raises(SearchError, match="item row 2500 holds NaN"):
        build_streamed(spec_of("ivf-sq"), source, artifact / "a", 1)
    source.write_bytes(b"\xff" * 64)
    assert "is not a safetensors file" in run("build", artifact, "--kind", "ivf-sq", "--memory-mib", 8).stderr


def test_the_command_builds_in_parts_and_picks_the_cheapest_effort(artifact):
    users = artifact / "users.safetensors"
    built = run("build", artifact, "--kind", "ivf-pq", "--memory-mib", 1, "--queries", users, "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["recall_queries"] == "users"
    curve = artifact / "curve.json"
    tuned = run("tune", artifact, "--recall", 0.9, "--queries", users, "--repeats", 3, "--curve", curve, "--json")
    answer = json.loads(tuned.stdout)
    enough = [each for each in answer["efforts"] if each["recall"] >= 0.9]
    assert answer["pick"] == min(enough, key=lambda each: each["milliseconds"])
    assert json.loads(curve.read_text()) == answer and answer["queries"] == "users"
    short = run("tune", artifact, "--queries", artifact / "item_vectors.safetensors", "--milliseconds", 0.001, "--json")
    assert json.loads(short.stdout)["pick"] is None and "no effort" in json.loads(short.stdout)["advice"]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("ivf-pq", {"subvectors": 7}, "a vector has 64 numbers"),
        ("ivf-pq", {"subvectors": 32}, "an array of"),
        ("ivf-sq", {"cells": 100}, "an array of"),
    ],
    ids=["no divisor", "other codes", "other cells"],
)
def test_a_folder_whose_parameters_are_not_those_of_its_file_is_refused(kind, change, message, vectors, tmp_path):
    save_index(build_index(spec_of(kind), vectors[:200]), tmp_path / "index")
    entry = json.loads((tmp_path / "index" / "index.json").read_text())
    entry["parameters"] |= change
    (tmp_path / "index" / "index.json").write_text(json.dumps(entry))
    with pytest.raises(IndexFolderError, match=message):
        open_index(tmp_path / "index")


def test_a_file_with_an_item_in_a_cell_that_is_not_there_is_refused(vectors, tmp_path):
    index = build_index(spec_of("ivf-sq"), vectors[:200])
    cells, codes = index._contents()
    cells[5] = 99
    index._contents = lambda: (cells, codes)
    save_index(index, tmp_path / "index")
    with pytest.raises(IndexFolderError, match="an item in a cell that is not there"):
        open_index(tmp_path / "index")


def test_the_cheapest_is_the_quickest_with_enough_recall():
    points = [Point({}, 0.8, 0.1, 0.1), Point({}, 0.95, 0.3, 0.4), Point({}, 0.99, 0.2, 0.9), Point({}, 1.0, 0.9, 1.0)]
    assert cheapest(points, 0.9, None) is points[2] and cheapest(points, 0.995, 1.0) is points[3]
    assert cheapest(points, 0.9, 0.1) is None
